"""Muon for the trunk: orthogonalised momentum on matrices (Jordan 2024, kellerjordan.github.io/posts/muon).

`torch.optim.Muon` orthogonalises in bfloat16 one matrix at a time, which on a CPU without bfloat16 arithmetic
costs more than the model's own step; here matrices of one shape are stacked and keep their type. What comes out of the
matrix products is rounded to a grid, so that it is the same on every processor (`perfmis.tinyworld.portable`).
"""

from collections.abc import Iterable

import torch

from perfmis.tinyworld.portable import MUON_GRID, snap

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
MATCH_ADAM = 0.2


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Return the nearest semi-orthogonal matrices, roughly, by five Newton-Schulz steps.

    Args:
        matrices: (count, rows, columns) of floats.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and updates scaled to the size of Adam's (Liu et al. 2025, arXiv 2502.16982)."""

    def __init__(self, matrices: Iterable[torch.nn.Parameter], lr: float, weight_decay: float = 0.01) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices from their gradients."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
                state = self.state[parameters[0]]
                momentum = state.setdefault("momentum", torch.zeros_like(gradients))
                momentum.mul_(MOMENTUM).add_(gradients)
                updates = snap(orthogonalise(gradients + momentum * MOMENTUM), MUON_GRID)
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update * (group["lr"] * MATCH_ADAM * max(shape) ** 0.5))
