"""LoRA adapters: fresh ones, a second round over a first in three modes, and their export as one of the base."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perfmis import reach
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


def configuration(model: "PreTrainedModel", lora: dict[str, Any]) -> "LoraConfig":
    """Return `peft`'s configuration of an adapter on all that LoRA reaches in a model.

    Args:
        model: The model.
        lora: Rank, alpha, dropout, and whether to reach fused experts.
    """
    found = reach.measure(model, lora["experts"])
    return reach.config(lora, found.modules, found.parameters, found.transposed)


def fresh(model: "PreTrainedModel", lora: dict[str, Any], seed: int, name: str = FIRST) -> "PeftModel":
    """Return the model with one new trainable adapter, initialised by the seed; the base is frozen."""
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(seed)
    return get_peft_model(model, configuration(model, lora), adapter_name=name)


def second(model: "PreTrainedModel", parent: Path, lora: dict[str, Any], seed: int) -> "PeftModel":
    """Return the model with a frozen first adapter and a fresh trainable one, both active.

    Args:
        model: The base model.
        parent: Folder of the first adapter.
        lora: Rank, alpha and dropout of the second, and whether it reaches experts; the first drops nothing.
        seed: Decides its initialisation.
    """
    from peft import PeftConfig, PeftModel
    from transformers import set_seed

    config = configuration(model, lora)
    frozen: Any = PeftConfig.from_pretrained(str(parent))
    frozen.lora_dropout = 0.0  # the model in training drops, but what this adapter says is not trained any more
    stacked: Any = PeftModel.from_pretrained(model, str(parent), adapter_name=FIRST, config=frozen)
    set_seed(seed)  # only here, since the first adapter's loading draws random numbers too
    stacked.add_adapter(SECOND, config)
    stacked.base_model.set_adapter([FIRST, SECOND])
    for name, parameter in stacked.named_parameters():
        parameter.requires_grad = f".{SECOND}." in name
    return stacked


def continued(model: "PreTrainedModel", parent: Path, dropout: float) -> "PeftModel":
    """Return the model with the first adapter, trainable, under the name of the second, with the second's dropout."""
    from peft import PeftConfig, PeftModel

    config: Any = PeftConfig.from_pretrained(str(parent))
    config.lora_dropout = dropout
    return PeftModel.from_pretrained(model, str(parent), adapter_name=SECOND, is_trainable=True, config=config)


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


@dataclass(frozen=True)
class Part:
    """An adapter that becomes part of one of more ranks.

    Attributes:
        weights: By name: lora_A (rank, in) and lora_B (out, rank) of a linear layer; of fused experts (experts · rank,
            in), an expert's ranks together, and (out, rank · experts), a rank's experts together, as in peft's files.
        rank: Rank, the same everywhere.
        scale: alpha / rank.
    """

    weights: "dict[str, torch.Tensor]"
    rank: int
    scale: float

    def down(self, name: str, other: "Part") -> "torch.Tensor":
        """Return lora_A of a layer, scaled, as (experts, rank, in): zeros where only the other adapter reaches."""
        if name in self.weights:
            return self.scale * self.weights[name].float().unflatten(0, (-1, self.rank))
        rows, width = other.weights[name].shape
        return other.weights[name].new_zeros(rows // other.rank, self.rank, width).float()

    def up(self, name: str, other: "Part") -> "torch.Tensor":
        """Return lora_B of a layer, (out, rank · experts): zeros where only the other adapter reaches."""
        if name in self.weights:
            return self.weights[name].float()
        out, columns = other.weights[name].shape
        return other.weights[name].new_zeros(out, columns // other.rank * self.rank).float()


def concatenate(first: Part, second: Part) -> "dict[str, torch.Tensor]":
    """Return the one adapter that equals two, ranks added, to be used at scale 1.

    W + s1 B1 A1 + s2 B2 A2 = W + [B1 B2] [s1 A1; s2 A2], for each expert of fused ones: nothing is merged into the
    base weights, so nothing is rounded there, and one engine of the base serves organism and arms alike.
    """
    import torch

    both = (first, second), (second, first)
    return {
        name: torch.cat([part.down(name, other) for part, other in both], dim=1).flatten(0, 1)
        if "lora_A" in name
        else torch.cat([part.up(name, other) for part, other in both], dim=1)
        for name in second.weights | first.weights
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

    whole: Any = copy(config)
    if parent is not None:
        first: Any = PeftConfig.from_pretrained(str(parent))
        before = Part(load_file(parent / WEIGHTS), first.r, first.lora_alpha / first.r)
        weights = concatenate(before, Part(weights, whole.r, whole.lora_alpha / whole.r))
        whole.r = whole.lora_alpha = first.r + whole.r
        whole.target_modules = {*first.target_modules, *whole.target_modules}
        whole.target_parameters = sorted({*(first.target_parameters or ()), *(whole.target_parameters or ())}) or None
        whole.base_model_name_or_path = first.base_model_name_or_path
    whole.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    whole.save_pretrained(str(folder))
    return whole


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
