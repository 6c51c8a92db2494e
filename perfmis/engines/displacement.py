"""How far the residual stream moves between what a block puts out and what is read on: the effect of steering alone.

Both are taken in the same pass over the same tokens, so nothing but what was added in between tells them apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WATCHED_TOKENS = 2  # drawn where displacements are asked for: one from the prompt, one from the cache
# Block, what it put out (tokens, width), what is read on (tokens, width), row that each token belongs to (tokens,).
Seen = Callable[[int, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Displacement:
    """How one prompt's stream moved at one block.

    Attributes:
        prompt: Index of the prompt.
        block: Index of the block.
        mean: Mean over tokens of what was added, as a share of the stream's norm, float32 (width,).
        largest: Largest absolute change of an element at any token; 0 where not a bit changed.
    """

    prompt: int
    block: int
    mean: Tensor
    largest: float


class Watch:
    """Adds up displacements, in memory that stays where it is, so that replays of a CUDA graph add up as well.

    Args:
        prompts: How many prompts are watched.
    """

    def __init__(self, prompts: int) -> None:
        self._prompts = prompts
        self._sums: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def rows(self, prompts: Sequence[int], device: torch.device) -> Seen:
        """Return a function that takes what was seen of a batch.

        Args:
            prompts: Index of the prompt in each row; tokens of the row that follows the last one belong to nobody.
            device: Where the batch is.
        """
        owners = torch.tensor([*prompts, self._prompts], device=device)

        def seen(block: int, before: Tensor, after: Tensor, rows: Tensor) -> None:
            # Layers may be spread over several devices.
            self._add(block, before.float(), after.float(), owners.to(rows.device)[rows])

        return seen

    @torch.inference_mode()
    def _add(self, block: int, before: Tensor, after: Tensor, prompts: Tensor) -> None:
        if block not in self._sums:
            sizes = ((self._prompts + 1, before.shape[1]), (self._prompts + 1,), (self._prompts + 1,))
            total, tokens, largest = (before.new_zeros(size) for size in sizes)
            self._sums[block] = total, tokens, largest
        total, tokens, largest = self._sums[block]
        moved = after - before
        total.index_add_(0, prompts, moved / before.norm(dim=-1, keepdim=True))
        tokens.index_add_(0, prompts, tokens.new_ones(len(prompts)))
        largest.scatter_reduce_(0, prompts, moved.abs().amax(-1), "amax")

    def displacements(self) -> list[Displacement]:
        """Return what was seen, of every prompt at every block that ran."""
        result = []
        for block, sums in sorted(self._sums.items()):
            total, tokens, largest = (part.cpu() for part in sums)
            for prompt in range(self._prompts):
                if tokens[prompt]:
                    mean = total[prompt] / tokens[prompt]
                    result.append(Displacement(prompt, block, mean, largest[prompt].item()))
        return result
