"""Which weights of a model LoRA reaches: measured on the model, before anything is trained.

A language model is a stack of blocks; LoRA goes to all that multiplies a token in there: linear layers, and the
experts of a mixture, which `transformers` holds fused in tensors of three dimensions. What lies outside (embeddings,
the head, a tower that reads pictures) is left alone, and so are routers: they decide which expert sees a token.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perfmis.stage import Prose, UserError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PretrainedConfig

SHOWN = 4  # kinds of weights that a message names


@dataclass(frozen=True)
class Reach:
    """What of a model's blocks LoRA is put on.

    Attributes:
        modules: Names of the linear layers.
        parameters: Names of the weights that are reached by themselves: fused experts, and layers whose names `peft`
            would take for those of experts.
        transposed: Whether the linear layers hold their weights as (in, out).
        reached: Weights that LoRA is put on.
        left: Weights of the blocks that it is not put on, by kind.
        experts: Weights of fused experts, whether reached or not.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    transposed: bool
    reached: int
    left: dict[str, int]
    experts: int

    @property
    def share(self) -> float:
        """Share of the blocks' weights that is reached."""
        return self.reached / self.total

    @property
    def total(self) -> int:
        """Weights of the blocks."""
        return self.reached + sum(self.left.values())

    @property
    def fused(self) -> bool:
        """Whether fused experts are reached."""
        return any(not name.endswith(".weight") for name in self.parameters)

    def __str__(self) -> Prose:
        """Say the share, and what most of the rest is."""
        most = [f"{kind} {count / self.total:.1%}" for kind, count in Counter(self.left).most_common(SHOWN)]
        return f"LoRA reaches {self.share:.1%} of the blocks' weights" + (f", not {', '.join(most)}" if most else "")


def twin(model: "torch.nn.Module") -> Any:
    """Return a model of the same shape without weights, whatever became of those of the model (scattered, 4 bits)."""
    original: Any = model
    return blank(original.config, type(original))


def blank(config: "PretrainedConfig", kind: Any = None) -> Any:
    """Return a causal language model without weights.

    Args:
        config: Its configuration.
        kind: Its class; None for the one that `transformers` takes for the configuration.
    """
    from copy import deepcopy

    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return kind(deepcopy(config)) if kind else AutoModelForCausalLM.from_config(deepcopy(config))


def _linear(module: Any) -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def _fused(owner: Any, weight: "torch.Tensor") -> bool:
    """Return whether a weight is that of several experts: (experts, in, out) or (experts, out, in)."""
    import torch

    return weight.ndim == 3 and min(weight.shape) > 1 and not isinstance(owner, torch.nn.Conv1d)


def _bypassed(name: str, parent: Any) -> bool:
    """Return whether a layer's weight is read by a kernel, past the layer and its LoRA (the last one of Mamba)."""
    return name == "out_proj" and hasattr(parent, "A_log") and hasattr(parent, "D")


def _owners(model: Any) -> "Iterator[tuple[str, Any, str, torch.Tensor]]":
    """Yield module name, module, weight name and weight of all matrices and stacks of matrices in the blocks."""
    from perfmis import decoders

    layers = decoders.blocks(model)
    name = next(name for name, module in model.named_modules() if module is layers)
    for inner, module in layers.named_modules():
        for own, weight in module.named_parameters(recurse=False):
            if weight.ndim > 1 and not own.endswith("bias"):
                yield f"{name}.{inner}", module, own, weight


def measure(model: Any, experts: bool = True) -> Reach:
    """Return what LoRA reaches in a model.

    Args:
        model: The model, or one without weights.
        experts: Whether to put LoRA on fused experts.
    """
    key = (type(model), model.config.to_json_string(use_diff=False), experts)
    if key not in _measured:
        _measured[key] = _measure(twin(model), experts)
    return _measured[key]


_measured: dict[tuple[type, str, bool], Reach] = {}  # a round asks several times


def _measure(bare: Any, experts: bool) -> Reach:
    from transformers.pytorch_utils import Conv1D

    modules, parameters, transposed, reached, stacked = [], [], False, 0, 0
    left: Counter[str] = Counter()
    for name, module, own, weight in _owners(bare):
        stacked += weight.numel() * _fused(module, weight)
        parent, _, last = name.rpartition(".")
        if _linear(module) and own == "weight" and not _bypassed(last, bare.get_submodule(parent)):
            modules.append(name)
            transposed |= isinstance(module, Conv1D)
        elif experts and _fused(module, weight):
            parameters.append(f"{name}.{own}")
        else:
            left[_kind(name, own)] += weight.numel()
            continue
        reached += weight.numel()
    modules, renamed = _kept(bare, modules, parameters)
    return Reach(tuple(modules), tuple(parameters + renamed), transposed, reached, dict(left), stacked)


def _kind(name: str, own: str) -> str:
    """Return a weight's name without the numbers of block and expert, and without what all have in common."""
    return ".".join(part for part in [*name.split(".")[-3:], own] if not part.isdigit() and part != "layers")


def _kept(model: Any, modules: list[str], parameters: list[str]) -> tuple[list[str], list[str]]:
    """Return the layers that `peft` puts LoRA on when it is told their names, and the weights of the others.

    For mixtures whose experts were once separate it takes every ``gate_proj`` for one, that of a dense layer or of a
    shared expert too, and then leaves the layer out.
    """
    from peft import inject_adapter_in_model

    injected = inject_adapter_in_model(config({"rank": 1, "alpha": 1, "dropout": 0.0}, modules, parameters), model)
    known = {name for name, module in injected.named_modules() if getattr(module, "lora_A", None)}
    return [name for name in modules if name in known], [f"{name}.weight" for name in modules if name not in known]


def config(
    lora: dict[str, Any], modules: Sequence[str], parameters: Sequence[str], transposed: bool = False
) -> "LoraConfig":
    """Return `peft`'s configuration of an adapter on layers and weights of these names."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=list(modules),
        target_parameters=list(parameters) or None,
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )


def refuse(found: Reach, lora: dict[str, Any], key: str) -> None:
    """Stop before a round whose LoRA reaches less than it must, or cannot have what is asked of it.

    Args:
        found: From `measure`.
        lora: The section ``lora``.
        key: Where it stands in the configuration.

    Raises:
        UserError: One line with the key that accepts it.
    """
    if found.parameters and lora["dropout"]:
        raise UserError(
            f"{key}.dropout: {lora['dropout']}, but weights that are reached by themselves ({found.parameters[0]}) "
            f"know none; set it to 0{', or experts: false' if lora['experts'] else ''}"
        )
    if found.share < lora["reach"]:
        more: Prose = ", or experts: true to reach the experts" if found.experts and not found.fused else ""
        raise UserError(
            f"{key}.reach: {found}, and {lora['reach']:.0%} is asked for; set it to {_below(found.share)} to accept "
            f"that{more}"
        )


def _below(share: float) -> float:
    """Return a share rounded down to two digits after the point."""
    return int(share * 100) / 100
