"""The export of a round, tried before the round is trained, on adapters that are drawn instead of learnt.

An arm's adapter holds its organism's, ranks added (`perfmis.adapters.export`). Whether `peft` loads that again, for
every kind of weight that LoRA reaches in a model, shows in a second on the model's shape alone: what LoRA adds to a
weight does not depend on the weight.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfmis import adapters, reach
from perfmis.stage import UserError

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4  # of the greatest change
SHAPE, ORGANISM, ARM, EXPORTED = "shape", "first", "second", "both"
RANKS = {ORGANISM: 2, ARM: 1}
ALPHAS = {ORGANISM: 3, ARM: 5}


def layers(network: Any, name: str) -> dict[str, Any]:
    """Return the layers that have an adapter of this name, by their own."""
    return {key: module for key, module in network.named_modules() if name in getattr(module, "lora_A", ())}


def check(model: Any, experts: bool) -> None:
    """Export an organism and an arm on top of it, load both and their sum, and compare what they do.

    Args:
        model: The model, or one without weights; only its shape is used.
        experts: Whether LoRA is put on fused experts.

    Raises:
        UserError: The exported adapter does not load, or is not the sum.
    """
    import torch
    from peft import get_peft_model

    found = reach.measure(model, experts)
    lora = {"rank": 1, "alpha": 1, "dropout": 0.0}
    config = reach.config(lora, found.modules, found.parameters, found.transposed)
    network: Any = get_peft_model(reach.twin(model), config, adapter_name=SHAPE)
    done: dict[str, dict[str, torch.Tensor | None]] = {}
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=[]):
        for name, folder in _export(network, Path(scratch)).items():
            try:
                network.load_adapter(str(folder), adapter_name=name, low_cpu_mem_usage=True, torch_device="cpu")
            except (RuntimeError, ValueError, KeyError) as error:
                raise _refusal(model, f"peft cannot load it: {' '.join(str(error).split())[:200]}") from error
            # At once: without weights in the model, the next adapter that is loaded takes away those of this one.
            done[name] = {key: _applied(layer, name) for key, layer in layers(network, name).items()}
    for key in layers(network, SHAPE):
        if not _sum(*(done[name].get(key) for name in (ORGANISM, ARM, EXPORTED))):
            raise _refusal(model, f"it is not the sum of organism and arm at {key}")


def _refusal(model: Any, why: str) -> UserError:
    return UserError(
        f"sdf.lora: an arm of {type(model).__name__} cannot be exported, {why}; set arms.mode: continue, or take "
        "another model"
    )


def _export(network: Any, scratch: Path) -> dict[str, Path]:
    """Write an organism, an arm alone and both as one, of random weights, and return their folders by name.

    Args:
        network: A model with an adapter of rank 1, for its names and shapes.
        scratch: Where to.
    """
    from copy import copy

    import torch
    from peft import get_peft_model_state_dict

    torch.manual_seed(0)
    shapes = get_peft_model_state_dict(network, adapter_name=SHAPE, save_embedding_layers=False)
    folders = {name: scratch / name for name in (ORGANISM, ARM, EXPORTED)}
    for name, rank in RANKS.items():
        weights = {
            key: torch.randn(
                (rank * weight.shape[0], weight.shape[1])
                if "lora_A" in key
                else (weight.shape[0], rank * weight.shape[1])
            )
            for key, weight in shapes.items()
        }
        config = copy(network.peft_config[SHAPE])
        config.r, config.lora_alpha = rank, ALPHAS[name]
        adapters.export(weights, config, None, folders[name])
        if name == ARM:
            adapters.export(weights, config, folders[ORGANISM], folders[EXPORTED])
    return folders


def _sum(first: "torch.Tensor | None", second: "torch.Tensor | None", both: "torch.Tensor | None") -> bool:
    import torch

    if first is None or second is None or both is None:
        return False
    return torch.allclose(first + second, both, rtol=0, atol=TOLERANCE * float(both.abs().max()))


def _applied(layer: Any, name: str) -> "torch.Tensor | None":
    """Return what an adapter adds to a layer's (or each expert's) output for a vector of ones and twos.

    None where it was not loaded into the layer.
    """
    import torch

    if layer.lora_A[name].weight.is_meta or layer.lora_B[name].weight.is_meta:
        return None
    if hasattr(layer, "get_delta_factors"):  # a weight that is reached by itself
        left, right, scaling = layer.get_delta_factors(name)
    else:
        left, right, scaling = layer.lora_B[name].weight, layer.lora_A[name].weight, layer.scaling[name]
    vector = 1 + torch.arange(right.shape[-1]) % 2
    return scaling * (left.float() @ (right.float() @ vector.float())[..., None])
