"""Products with frozen weights in 8-bit floats (e4m3), scaled per row, for Hopper's tensor cores.

A weight is kept twice, once per direction: the cores multiply fp8 only when both factors run along the summed
dimension, which is `in` in the forward and `out` in the backward pass. Together they take the bytes of one bf16 copy.

Rows leave room for a low-rank state beside them, so that LoRA's share is part of the same product. Their scale is that
of the row without it, and leaves it a factor of `HEADROOM` before it would be cut off; e4m3 is a floating format whose
relative error is the same that far below its greatest value.
"""

from typing import NamedTuple

import torch
from torch import Tensor

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
HEADROOM = 16
LIMIT = LARGEST / HEADROOM


class Rows(NamedTuple):
    """A matrix as ``values * scale``: e4m3 (rows, columns), and fp32 (rows, 1)."""

    values: Tensor
    scale: Tensor


class Weight(NamedTuple):
    """A frozen weight (out, in): its rows for the forward pass, those of its transpose for the backward pass."""

    forward: Rows
    backward: Rows


def quantise(x: Tensor, room: int) -> Rows:
    """Return a matrix in fp8, with ``room`` more columns whose content is undefined until `fill`."""
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LIMIT
    values = torch.empty(len(x), x.shape[1] + room, dtype=DTYPE, device=x.device)
    values[:, : x.shape[1]] = (x.float() / scale).to(DTYPE)
    return Rows(values, scale)


def fill(rows: Rows, beside: Tensor) -> None:
    """Write a matrix (rows, room) into the last columns, in the scale of the others."""
    values = (beside.float() / rows.scale).clamp(-LARGEST, LARGEST).to(DTYPE)
    rows.values[:, -beside.shape[1] :] = values


def product(x: Rows, y: Rows, dtype: torch.dtype) -> Tensor:
    """Return ``x @ y.T``, (rows of x, rows of y), in ``dtype``: bf16 on a GPU; a CPU multiplies the values in fp32."""
    if not x.values.is_cuda:
        return ((x.values.float() * x.scale) @ (y.values.float() * y.scale).t()).to(dtype)
    return torch._scaled_mm(
        x.values, y.values.t(), scale_a=x.scale, scale_b=y.scale.t(), out_dtype=dtype, use_fast_accum=True
    )
