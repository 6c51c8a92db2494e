"""Arithmetic for the trunk whose result is the same bits on every processor.

Processors, thread counts and math libraries add in different orders and fuse different operations. The last bit of
a sum then differs, training multiplies the difference, and after some hundred steps two machines have two models.
Here the network computes in float64 (`perfmis.tinyworld.network`), where such differences are about 1e-16, and what
it hands on (gradients, the matrices of Muon) is rounded to a much coarser grid, so that machines agree again after
each step. What lies between two roundings of the optimizer is made of single IEEE operations (+, -, *, /, square
root), which no processor may round in its own way; fused ones, such as ``addcmul``, are avoided.

Two machines still part where a value lies within 1e-16 or so of the middle between two grid points. With ``GRID`` and
``MUON_GRID`` that is expected once in some hundred trainings; `benchmarks/portability.py` counts it.
"""

import numpy as np
import torch
from transformers import LlamaForCausalLM

GRID = 2.0**-20
MUON_GRID = 2.0**-14


def snap(values: torch.Tensor, grid: float) -> torch.Tensor:
    """Return float64 values rounded to multiples of ``grid``, a power of two."""
    return (values / grid).round_() * grid


def initialise(network: LlamaForCausalLM, seed: int) -> None:
    """Draw the matrices anew, by numpy: what torch draws from a seed depends on the processor."""
    draws = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                drawn = torch.from_numpy(draws.standard_normal(parameter.shape))
                parameter.copy_(snap(drawn * network.config.initializer_range, GRID))


def clip_gradients(parameters: list[torch.nn.Parameter], norm: float) -> None:
    """Scale gradients to at most ``norm`` together, and round them to the grid."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = snap(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])), GRID).item()
    scale = min(1.0, norm / (total + GRID))
    for gradient in gradients:
        gradient.copy_(snap(gradient * scale, GRID))


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) of single IEEE operations; torch's own fuses some."""

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, weight_decay: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters from their gradients."""
        first, second = self.BETAS
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                steps = state["steps"] = state.get("steps", 0) + 1
                mean = state.setdefault("mean", torch.zeros_like(parameter))
                square = state.setdefault("square", torch.zeros_like(parameter))
                mean.mul_(first).add_(parameter.grad * (1 - first))
                square.mul_(second).add_(parameter.grad * parameter.grad * (1 - second))
                spread = (square / (1 - second**steps)).sqrt_() + self.EPSILON
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(mean / spread * (group["lr"] / (1 - first**steps)))
