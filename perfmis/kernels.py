"""Triton kernels between the matrix products of `perfmis.fastpath`: one program a token, each tensor read once.

Every function has a plain twin of the same name in `perfmis.fastpath.Plain`, which says what is computed;
`benchmarks/train_throughput.py` compares them. With ``room``, a result is also given in fp8, from the same pass.
"""

# mypy: disallow-untyped-defs=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from perfmis.fp8 import DTYPE, LARGEST, LIMIT, Rows

WIDEST = 4096  # columns at a time


def _power(width: int) -> int:
    return int(triton.next_power_of_2(width))


def _rows(x: Tensor, width: int, room: int | None) -> tuple[Rows | None, Tensor, Tensor, int]:
    """Return memory for rows in fp8, where wanted: as a whole, and as the pointers and the stride of a kernel."""
    if room is None:
        return None, x, x, 0
    rows = Rows(x.new_empty(len(x), width + room, dtype=DTYPE), x.new_empty(len(x), 1, dtype=torch.float32))
    return rows, rows.values, rows.scale, width + room


@triton.jit
def _store_scaled(source, values, pitch, scale, row, width, limit, amax, block: tl.constexpr):
    """Store a row of bf16 that this program has just written as e4m3."""
    factor = tl.maximum(amax, 1e-12) / limit
    tl.store(scale + row, factor)
    tl.debug_barrier()
    for start in range(0, width, block):
        at = start + tl.arange(0, block)
        x = tl.load(source + at, mask=at < width, other=0.0).to(tl.float32) / factor
        tl.store(values + row * pitch + at, x.to(tl.float8e4nv), mask=at < width)


@triton.jit
def _quantise(x, stride, values, pitch, scale, width, limit, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    amax = 0.0
    for start in range(0, width, block):
        at = start + tl.arange(0, block)
        part = tl.load(x + row * stride + at, mask=at < width, other=0.0).to(tl.float32)
        amax = tl.maximum(amax, tl.max(tl.abs(part)))
    _store_scaled(x + row * stride, values, pitch, scale, row, width, limit, amax, block)


def quantise(x: Tensor, room: int) -> Rows:
    """See `perfmis.fp8.quantise`."""
    rows, values, scale, pitch = _rows(x, x.shape[1], room)
    assert rows is not None
    block = min(WIDEST, _power(x.shape[1]))
    _quantise[(len(x),)](x, x.stride(0), values, pitch, scale, x.shape[1], LIMIT, block=block, num_warps=8)
    return rows


@triton.jit
def _fill(x, stride, step, values, pitch, scale, width, largest, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    v = tl.load(x + row * stride + at * step, mask=at < width, other=0.0).to(tl.float32) / tl.load(scale + row)
    v = tl.minimum(tl.maximum(v, -largest), largest)
    tl.store(values + row * pitch + at, v.to(tl.float8e4nv), mask=at < width)


def fill(rows: Rows, beside: Tensor) -> None:
    """See `perfmis.fp8.fill`."""
    width = beside.shape[1]
    tail = rows.values[:, -width:]
    _fill[(len(beside),)](
        beside, *beside.stride(), tail, tail.stride(0), rows.scale, width, LARGEST, block=_power(width), num_warps=1
    )


@triton.jit
def _normalise(
    x,
    delta,
    weight,
    total,
    out,
    stride,
    rstd,
    values,
    pitch,
    scale,
    width,
    epsilon,
    limit,
    add: tl.constexpr,
    quantised: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < width
    h = tl.load(x + row * width + at, mask=inside, other=0.0)
    if add:
        h = (h.to(tl.float32) + tl.load(delta + row * width + at, mask=inside, other=0.0).to(tl.float32)).to(h.dtype)
        tl.store(total + row * width + at, h, mask=inside)
    wide = h.to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(wide * wide) / width + epsilon)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    n = (w * (wide * r).to(h.dtype).to(tl.float32)).to(h.dtype)
    tl.store(out + row * stride + at, n, mask=inside)
    tl.store(rstd + row, r)
    if quantised:
        n = n.to(tl.float32)
        factor = tl.maximum(tl.max(tl.abs(n)), 1e-12) / limit
        tl.store(scale + row, factor)
        tl.store(values + row * pitch + at, (n / factor).to(tl.float8e4nv), mask=inside)


def normalise(
    x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float, out: Tensor, room: int | None
) -> tuple[Tensor, Tensor, Rows | None]:
    """See `perfmis.fastpath.Plain.normalise`."""
    count, width = x.shape
    total = x if delta is None else torch.empty_like(x)
    rstd = x.new_empty(count, dtype=torch.float32)
    rows, values, scale, pitch = _rows(x, width, room)
    other = x if delta is None else delta
    _normalise[(count,)](
        x,
        other,
        weight,
        total,
        out,
        out.stride(0),
        rstd,
        values,
        pitch,
        scale,
        width,
        epsilon,
        LIMIT,
        add=delta is not None,
        quantised=room is not None,
        block=_power(width),
        num_warps=8,
    )
    return total, rstd, rows


@triton.jit
def _normalise_backward(
    dn,
    x,
    rstd,
    weight,
    residual,
    dx,
    values,
    pitch,
    scale,
    width,
    limit,
    quantised: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < width
    r = tl.load(rstd + row)
    h = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32) * r
    g = tl.load(dn + row * width + at, mask=inside, other=0.0).to(tl.float32)
    g *= tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    kept = tl.load(residual + row * width + at, mask=inside, other=0.0)
    d = (kept.to(tl.float32) + r * (g - h * (tl.sum(g * h) / width))).to(kept.dtype)
    tl.store(dx + row * width + at, d, mask=inside)
    if quantised:
        d = d.to(tl.float32)
        factor = tl.maximum(tl.max(tl.abs(d)), 1e-12) / limit
        tl.store(scale + row, factor)
        tl.store(values + row * pitch + at, (d / factor).to(tl.float8e4nv), mask=inside)


def normalise_backward(
    dn: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, residual: Tensor, room: int | None
) -> tuple[Tensor, Rows | None]:
    """See `perfmis.fastpath.Plain.normalise_backward`."""
    count, width = x.shape
    dx = torch.empty_like(x)
    rows, values, scale, pitch = _rows(x, width, room)
    _normalise_backward[(count,)](
        dn,
        x,
        rstd,
        weight,
        residual,
        dx,
        values,
        pitch,
        scale,
        width,
        LIMIT,
        quantised=room is not None,
        block=_power(width),
        num_warps=8,
    )
    return dx, rows


@triton.jit
def _gate(y, out, stride, values, pitch, scale, width, limit, quantised: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    amax = 0.0
    for start in range(0, width, block):
        at = start + tl.arange(0, block)
        inside = at < width
        gate = tl.load(y + row * 2 * width + at, mask=inside, other=0.0)
        up = tl.load(y + row * 2 * width + width + at, mask=inside, other=0.0)
        wide = gate.to(tl.float32)
        x = (wide * tl.sigmoid(wide) * up.to(tl.float32)).to(gate.dtype)
        tl.store(out + row * stride + at, x, mask=inside)
        if quantised:
            amax = tl.maximum(amax, tl.max(tl.abs(x.to(tl.float32))))
    if quantised:
        _store_scaled(out + row * stride, values, pitch, scale, row, width, limit, amax, block)


def gate(y: Tensor, out: Tensor, room: int | None) -> Rows | None:
    """See `perfmis.fastpath.Plain.gate`."""
    width = y.shape[1] // 2
    rows, values, scale, pitch = _rows(y, width, room)
    block = min(2048, _power(width))
    _gate[(len(y),)](
        y, out, out.stride(0), values, pitch, scale, width, LIMIT, quantised=room is not None, block=block, num_warps=8
    )
    return rows


@triton.jit
def _gate_backward(
    y, dx, out, stride, values, pitch, scale, width, limit, quantised: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    amax = 0.0
    for start in range(0, width, block):
        at = start + tl.arange(0, block)
        inside = at < width
        gate = tl.load(y + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(y + row * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(dx + row * width + at, mask=inside, other=0.0)
        s = tl.sigmoid(gate)
        wide = d.to(tl.float32)
        dgate = (wide * up * s * (1.0 + gate * (1.0 - s))).to(d.dtype)
        dup = (wide * gate * s).to(d.dtype)
        tl.store(out + row * stride + at, dgate, mask=inside)
        tl.store(out + row * stride + width + at, dup, mask=inside)
        if quantised:
            amax = tl.maximum(amax, tl.max(tl.maximum(tl.abs(dgate.to(tl.float32)), tl.abs(dup.to(tl.float32)))))
    if quantised:
        _store_scaled(out + row * stride, values, pitch, scale, row, 2 * width, limit, amax, block)


def gate_backward(y: Tensor, dx: Tensor, out: Tensor, room: int | None) -> Rows | None:
    """See `perfmis.fastpath.Plain.gate_backward`."""
    width = y.shape[1] // 2
    rows, values, scale, pitch = _rows(y, 2 * width, room)
    block = min(2048, _power(width))
    _gate_backward[(len(y),)](
        y,
        dx,
        out,
        out.stride(0),
        values,
        pitch,
        scale,
        width,
        LIMIT,
        quantised=room is not None,
        block=block,
        num_warps=8,
    )
    return rows


@triton.jit
def _rotated(x, y, cosine, sine, row, heads, dim: tl.constexpr, inverse: tl.constexpr, block: tl.constexpr):
    """Rotate a row of heads from ``x`` to ``y``; return its greatest absolute value."""
    half: tl.constexpr = dim // 2
    at = tl.arange(0, block)
    inside = at < heads * half
    column = at % half
    low = (at // half) * dim + column
    a = tl.load(x + low, mask=inside, other=0.0)
    b = tl.load(x + low + half, mask=inside, other=0.0)
    c1 = tl.load(cosine + row * dim + column).to(tl.float32)
    c2 = tl.load(cosine + row * dim + half + column).to(tl.float32)
    s1 = tl.load(sine + row * dim + column).to(tl.float32)
    s2 = tl.load(sine + row * dim + half + column).to(tl.float32)
    first, second = a.to(tl.float32), b.to(tl.float32)
    if inverse:
        p = (first * c1 + second * s2).to(a.dtype)
        q = (second * c2 - first * s1).to(a.dtype)
    else:
        p = (first * c1 - second * s1).to(a.dtype)
        q = (second * c2 + first * s2).to(a.dtype)
    tl.store(y + low, p, mask=inside)
    tl.store(y + low + half, q, mask=inside)
    return tl.max(tl.maximum(tl.abs(p.to(tl.float32)), tl.abs(q.to(tl.float32))))


@triton.jit
def _rotate(y, stride, cosine, sine, heads, dim: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    _rotated(y + row * stride, y + row * stride, cosine, sine, row, heads, dim, False, block)


def rotate(y: Tensor, cosine: Tensor, sine: Tensor, heads: int) -> None:
    """See `perfmis.fastpath.Plain.rotate`."""
    dim = cosine.shape[1]
    _rotate[(len(y),)](y, y.stride(0), cosine, sine, heads, dim=dim, block=_power(heads * dim // 2), num_warps=8)


@triton.jit
def _rotate_backward(
    dq,
    dk,
    dv,
    cosine,
    sine,
    out,
    stride,
    values,
    pitch,
    scale,
    heads,
    groups,
    limit,
    dim: tl.constexpr,
    quantised: tl.constexpr,
    large: tl.constexpr,
    small: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    there = out + row * stride
    amax = _rotated(dq + row * heads * dim, there, cosine, sine, row, heads, dim, True, large)
    keys = there + heads * dim
    amax = tl.maximum(amax, _rotated(dk + row * groups * dim, keys, cosine, sine, row, groups, dim, True, small))
    at = tl.arange(0, 2 * small)
    inside = at < groups * dim
    v = tl.load(dv + row * groups * dim + at, mask=inside, other=0.0)
    tl.store(keys + groups * dim + at, v, mask=inside)
    if quantised:
        amax = tl.maximum(amax, tl.max(tl.abs(v.to(tl.float32))))
        _store_scaled(there, values, pitch, scale, row, (heads + 2 * groups) * dim, limit, amax, block)


def rotate_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, cosine: Tensor, sine: Tensor, out: Tensor, room: int | None
) -> Rows | None:
    """See `perfmis.fastpath.Plain.rotate_backward`."""
    (count, heads, dim), groups = dq.shape, dk.shape[1]
    rows, values, scale, pitch = _rows(out, (heads + 2 * groups) * dim, room)
    _rotate_backward[(count,)](
        dq,
        dk,
        dv,
        cosine,
        sine,
        out,
        out.stride(0),
        values,
        pitch,
        scale,
        heads,
        groups,
        LIMIT,
        dim=dim,
        quantised=room is not None,
        large=_power(heads * dim // 2),
        small=_power(groups * dim // 2),
        block=2048,
        num_warps=8,
    )
    return rows


def attend(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float
) -> tuple[Tensor, Any]:
    """See `perfmis.fastpath.Plain.attend`."""
    out, lse, _, _, _ = torch.ops.aten._flash_attention_forward(
        query, key, value, boundaries, boundaries, longest, longest, 0.0, True, False, scale=scale
    )
    return out, lse


def attend_backward(
    dy: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    boundaries: Tensor,
    longest: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `perfmis.fastpath.Plain.attend_backward`."""
    state = torch.zeros(2, dtype=torch.uint64, device=dy.device)  # of the dropout there is none of
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        dy,
        query,
        key,
        value,
        out,
        lse,
        boundaries,
        boundaries,
        longest,
        longest,
        0.0,
        True,
        state,
        dy.new_empty(0),
        scale=scale,
    )
    return result


@triton.jit
def _score(logits, stride, targets, score, entropy, top, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    here = logits + row * stride
    known = target >= 0
    highest = -float("inf")
    total = 0.0
    weighted = 0.0
    for start in range(0, width, block):
        at = start + tl.arange(0, block)
        x = tl.load(here + at, mask=at < width, other=-float("inf")).to(tl.float32)
        new = tl.maximum(highest, tl.max(x))
        e = tl.exp(x - new)
        rescale = tl.exp(highest - new)
        total = total * rescale + tl.sum(e)
        weighted = weighted * rescale + tl.sum(tl.where(at < width, x * e, 0.0))
        highest = new
    log_total = highest + tl.log(total)
    own = tl.load(here + tl.maximum(target, 0)).to(tl.float32)
    tl.store(score + row, tl.where(known, own - log_total, 0.0))
    tl.store(entropy + row, tl.where(known, log_total - weighted / total, 0.0))
    tl.store(top + row, known & (own >= highest))
    tl.debug_barrier()
    for start in range(0, width, block):
        at = start + tl.arange(0, block)
        x = tl.load(here + at, mask=at < width, other=-float("inf"))
        p = tl.exp(x.to(tl.float32) - log_total)
        g = tl.where(known, tl.where(at == target, 1.0 - p, -p), 0.0)
        tl.store(here + at, g.to(x.dtype), mask=at < width)


def score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `perfmis.fastpath.Plain.score`."""
    count, width = logits.shape
    scores, entropy = (logits.new_empty(count, dtype=torch.float32) for _ in range(2))
    top = logits.new_empty(count, dtype=torch.bool)
    block = min(8192, _power(width))
    _score[(count,)](logits, logits.stride(0), targets, scores, entropy, top, width, block=block, num_warps=16)
    return scores, entropy, top
