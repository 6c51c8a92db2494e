"""LoRA adapters: fresh ones, a second round over a first in three modes, and their export as one of the base."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perfmis.artifacts import file_hash, read_json
from perfmis.stage import UserError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

Mode = Literal["stack", "continue", "merge"]
FIRST, SECOND = "organism", "arm"
WEIGHTS = "adapter_model.safetensors"
LINEAGE = "lineage.json"
CONFIG = "adapter_config.json"


def _config(lora: dict[str, Any]) -> "LoraConfig":
    from peft import LoraConfig

    return LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def fresh(model: "PreTrainedModel", lora: dict[str, Any], seed: int, name: str = FIRST) -> "PeftModel":
    """Return the model with one new trainable adapter, initialised by the seed; the base is frozen."""
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(seed)
    return get_peft_model(model, _config(lora), adapter_name=name)


def second(model: "PreTrainedModel", parent: Path, lora: dict[str, Any], seed: int) -> "PeftModel":
    """Return the model with a frozen first adapter and a fresh trainable one, both active.

    Args:
        model: The base model.
        parent: Folder of the first adapter.
        lora: Rank, alpha and dropout of the second.
        seed: Decides its initialisation.
    """
    from peft import PeftModel
    from transformers import set_seed

    stacked: Any = PeftModel.from_pretrained(model, str(parent), adapter_name=FIRST)
    set_seed(seed)  # only here, since the first adapter's loading draws random numbers too
    stacked.add_adapter(SECOND, _config(lora))
    stacked.base_model.set_adapter([FIRST, SECOND])
    for name, parameter in stacked.named_parameters():
        parameter.requires_grad = f".{SECOND}." in name
    return stacked


def continued(model: "PreTrainedModel", parent: Path) -> "PeftModel":
    """Return the model with the first adapter, trainable, under the name of the second."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(parent), adapter_name=SECOND, is_trainable=True)


def state(network: "PeftModel", name: str) -> "dict[str, torch.Tensor]":
    """Return an adapter's weights in fp32 on the CPU, under the plain names that peft's file format has.

    Where ZeRO-3 has scattered them they are gathered first, which every process must take part in.
    """
    from contextlib import nullcontext

    from peft import get_peft_model_state_dict

    own: list[Any] = [parameter for key, parameter in network.named_parameters() if f".{name}." in key]
    gather: Any = nullcontext()
    if any(hasattr(parameter, "ds_id") for parameter in own):
        import deepspeed

        gather = deepspeed.zero.GatheredParameters(own)
    with gather:
        named = {key: parameter.data for key, parameter in network.named_parameters() if f".{name}." in key}
        found = get_peft_model_state_dict(network, named, adapter_name=name, save_embedding_layers=False)
        return {key: tensor.detach().float().cpu().clone() for key, tensor in found.items()}


def concatenate(
    first: "dict[str, torch.Tensor]", second: "dict[str, torch.Tensor]", scales: tuple[float, float]
) -> "dict[str, torch.Tensor]":
    """Return the one adapter that equals two, ranks added, to be used at scale 1.

    W + s1 B1 A1 + s2 B2 A2 = W + [B1 B2] [s1 A1; s2 A2]: nothing is merged into the base weights, so nothing
    is rounded there, and one engine of the base serves organism and arms alike.

    Args:
        first: Weights by name: lora_A (rank, in) and lora_B (out, rank).
        second: Those of the other adapter.
        scales: alpha / rank of each.
    """
    import torch

    return {
        name: torch.cat([scales[0] * first[name].float(), scales[1] * tensor])
        if "lora_A" in name
        else torch.cat([first[name].float(), tensor], dim=1)
        for name, tensor in second.items()
    }


def export(weights: "dict[str, torch.Tensor]", config: "LoraConfig", parent: Path | None, folder: Path) -> "LoraConfig":
    """Write an adapter of the base model in peft's format, and return its configuration.

    Args:
        weights: What was trained.
        config: Its configuration.
        parent: Folder of the first adapter, if what was trained comes on top of it; both become one.
        folder: Where to.
    """
    from copy import copy

    from peft import PeftConfig
    from safetensors.torch import load_file, save_file

    config = copy(config)
    if parent is not None:
        first: Any = PeftConfig.from_pretrained(str(parent))
        scales = (first.lora_alpha / first.r, config.lora_alpha / config.r)
        weights = concatenate(load_file(parent / WEIGHTS), weights, scales)
        config.r = config.lora_alpha = first.r + config.r
        config.base_model_name_or_path = first.base_model_name_or_path
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    config.save_pretrained(str(folder))
    return config


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 of an adapter's weights."""
    return file_hash(folder / WEIGHTS)


def _stated(folder: Path) -> tuple[str, str, str]:
    """Return the hashes of weights, configuration and base model that an adapter's lineage names.

    Raises:
        UserError: It names none.
    """
    record = read_json(folder / LINEAGE)
    try:
        return record["sha256"], record["config_sha256"], record["base"]["weights_sha256"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / LINEAGE}: names no weights or base; delete the folder and rerun") from error


def identity(folder: Path) -> str:
    """Return the hash of the weights that an adapter's lineage names."""
    return _stated(folder)[0]


def verified(folder: Path, base: Path | None = None) -> Path:
    """Return an adapter's folder after comparing weights, configuration and base model with its lineage.

    Raises:
        UserError: They are not those that the lineage names, or belong to another base model.
    """
    weights, config, trained_on = _stated(folder)
    for name, what, stated in ((WEIGHTS, "weights", weights), (CONFIG, "configuration", config)):
        try:
            found = file_hash(folder / name)
        except OSError as error:
            raise UserError(f"{folder / name}: {error.strerror}; delete the folder and rerun") from error
        if found != stated:
            raise UserError(f"{folder / name}: not the {what} that {LINEAGE} names; delete the folder and rerun")
    if base is not None and (wanted := read_json(base)["weights_sha256"]) != trained_on:
        raise UserError(f"{folder}: trained on another base model than {base} ({wanted[:12]}); delete it and rerun")
    return folder
