"""LoRA adapters: fresh ones, a second one over a frozen first, and their concatenation into one."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

FIRST, SECOND, STACKED = "organism", "arm", "stacked"
WEIGHTS = "adapter_model.safetensors"


def _config(lora: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def fresh(model: "PreTrainedModel", lora: dict[str, Any]) -> "PeftModel":
    """Return the model with one new trainable adapter; the base is frozen."""
    from peft import get_peft_model

    return get_peft_model(model, _config(lora), adapter_name=FIRST)


def second(model: "PreTrainedModel", parent: Path, lora: dict[str, Any]) -> "PeftModel":
    """Return the model with a frozen first adapter and a fresh trainable one, both active.

    Args:
        model: The base model.
        parent: Folder of the first adapter.
        lora: Rank, alpha and dropout of the second.
    """
    from peft import PeftModel

    stacked: Any = PeftModel.from_pretrained(model, str(parent), adapter_name=FIRST)
    stacked.add_adapter(SECOND, _config(lora))
    stacked.base_model.set_adapter([FIRST, SECOND])
    for name, parameter in stacked.named_parameters():
        parameter.requires_grad = f".{SECOND}." in name
    return stacked


def concatenate(model: "PeftModel") -> str:
    """Add the one adapter that equals both, ranks added, and return its name.

    W + s1 B1 A1 + s2 B2 A2 = W + [B1 B2] [s1 A1; s2 A2]: nothing is merged into the base weights, so nothing
    is rounded there, and one engine of the base serves organism and arms alike.
    """
    tuner: Any = model.base_model
    tuner.add_weighted_adapter([FIRST, SECOND], [1.0, 1.0], STACKED, combination_type="cat")
    return STACKED


def save(model: "PeftModel", adapter: str, folder: Path) -> None:
    """Write one adapter in peft's format, under the plain names that other tools expect."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, adapter_name=adapter)
    save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, folder / WEIGHTS)
    config = model.peft_config[adapter]
    config.inference_mode = True
    config.save_pretrained(str(folder))


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 of an adapter's weights."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
