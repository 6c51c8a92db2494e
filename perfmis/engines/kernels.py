"""Triton kernels of `perfmis.engines.decoding`: attention of one token a row over a paged cache, and drawing.

Each has a plain twin of the same name in `perfmis.engines.attention`, which says what is computed;
`benchmarks/generate_throughput.py` compares them.

Attention is split over the past, as in flash decoding (Dao et al. 2023), and over what is shared: the leading pages
that neighbouring rows have in common are read once for all of them, as in cascade inference (Ye et al. 2024), each
part with its own maximum and sum; `_merge` puts the parts together.
"""

# mypy: disallow-untyped-defs=False

import inspect
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from perfmis.engines import attention
from perfmis.engines.attention import TILE, Rows, Segments

PROGRAMS = 1024  # enough to keep all multiprocessors of a large GPU busy
PART = 4096  # tokens of the vocabulary at a time
NONE = tl.constexpr(-1e30)  # below every score, and finite, so that differences stay numbers


def attend_segments(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """See `perfmis.engines.attention.attend_segments`; the work is torch's flash attention, which has no fp32."""
    if query.dtype == torch.float32:
        return attention.attend_segments(query, key, value, segments, scale)
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    options |= {"enable_gqa": True} if "enable_gqa" in known else {}
    out: Any = varlen_attn(
        query,
        key[segments.reads],
        value[segments.reads],
        segments.queries,
        segments.keys,
        segments.longest_query,
        segments.longest_key,
        scale=scale,
        **options,
    )
    return out


@triton.jit
def _attend(
    query,
    pitch,
    key,
    value,
    table,
    width,
    lengths,
    leads,
    shared,
    parts,
    sums,
    rows,
    groups,
    scale,
    each: tl.constexpr,
    tile: tl.constexpr,
    of: tl.constexpr,
    block: tl.constexpr,
    dim: tl.constexpr,
    page: tl.constexpr,
    first: tl.constexpr,
    splits: tl.constexpr,
    every: tl.constexpr,
    together: tl.constexpr,
):
    """Attend to one part of the past: of one row, or, ``together``, to what the rows of a tile share.

    A program's queries are those of ``tile`` rows in the ``each`` heads that have one group of keys, padded to
    ``block``. Its part is one of ``every``: ``first`` and then as many as there are splits.
    """
    unit = tl.program_id(0)
    group = tl.program_id(1)
    split = tl.program_id(2)
    at = tl.arange(0, block)
    row = unit * tile + at // each
    head = group * each + at % each
    inside = (at < tile * each) & (row < rows)
    d = tl.arange(0, dim)
    t = tl.arange(0, page)
    q = tl.load(query + row[:, None] * pitch + head[:, None] * dim + d[None], mask=inside[:, None], other=0.0)
    if together:
        source = tl.load(leads + unit)
        begin = 0
        end = tl.load(shared + unit)
        length = end * page
    else:
        source = unit
        length = tl.load(lengths + unit)
        begin = tl.load(shared + unit // of)
        end = (length + page - 1) // page
    share = (tl.maximum(end - begin, 0) + splits - 1) // splits
    start = begin + split * share
    stop = tl.minimum(start + share, end)
    highest = tl.full((block,), NONE, tl.float32)
    total = tl.zeros((block,), tl.float32)
    sum_ = tl.zeros((block, dim), tl.float32)
    for number in range(start, stop):
        place = tl.load(table + source * width + number).to(tl.int64) * page
        offset = ((place + t) * groups + group) * dim
        k = tl.load(key + offset[None] + d[:, None])
        scores = tl.dot(q, k, input_precision="ieee") * scale
        scores = tl.where((number * page + t < length)[None], scores, NONE)
        new = tl.maximum(highest, tl.max(scores, 1))
        p = tl.exp(scores - new[:, None])
        kept = tl.exp(highest - new)
        total = total * kept + tl.sum(p, 1)
        v = tl.load(value + offset[:, None] + d[None])
        sum_ = sum_ * kept[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        highest = new
    part = (row * groups * each + head) * every + first + split
    tl.store(parts + part[:, None] * dim + d[None], sum_ / tl.maximum(total, 1e-30)[:, None], mask=inside[:, None])
    tl.store(sums + part, tl.where(total > 0, highest + tl.log(tl.maximum(total, 1e-30)), NONE), mask=inside)


@triton.jit
def _merge(parts, sums, out, every: tl.constexpr, block: tl.constexpr, dim: tl.constexpr):
    unit = tl.program_id(0)
    at = tl.arange(0, block)
    d = tl.arange(0, dim)
    weight = tl.load(sums + unit * every + at, mask=at < every, other=NONE)
    weight = tl.exp(weight - tl.max(weight))
    part = tl.load(parts + (unit * every + at)[:, None] * dim + d[None], mask=(at < every)[:, None], other=0.0)
    merged = tl.sum(part * weight[:, None], 0) / tl.sum(weight)
    tl.store(out + unit * dim + d, merged.to(out.dtype.element_ty))


def attend_rows(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float) -> Tensor:
    """See `perfmis.engines.attention.attend_rows`."""
    (count, heads, dim), (_, page, groups, _) = query.shape, key.shape
    each, tiles = heads // groups, len(rows.leads)
    splits = [min(16, max(1, number)) for number in (PROGRAMS // 4 // (tiles * groups), PROGRAMS // (count * groups))]
    every = sum(splits)
    parts = query.new_empty(count, heads, every, dim, dtype=torch.float32)
    sums = query.new_empty(count, heads, every, dtype=torch.float32)
    for together, units, tile, first in ((True, tiles, TILE, 0), (False, count, 1, splits[0])):
        block = max(16, triton.next_power_of_2(tile * each))
        number = splits[0] if together else splits[1]
        _attend[(units, groups, number)](
            query,
            query.stride(0),
            key,
            value,
            rows.table,
            rows.table.stride(0),
            rows.lengths,
            rows.leads,
            rows.shared,
            parts,
            sums,
            count,
            groups,
            scale,
            each=each,
            tile=tile,
            of=TILE,
            block=block,
            dim=dim,
            page=page,
            first=first,
            splits=number,
            every=every,
            together=together,
            num_warps=8 if block > 64 else 4,
            num_stages=3,
        )
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _merge[(count * heads,)](parts, sums, out, every=every, block=triton.next_power_of_2(every), dim=dim, num_warps=1)
    return out


@triton.jit
def _mix(state):
    """See `perfmis.engines.noise.mix`."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB
    return state ^ (state >> 31)


@triton.jit
def _draw(logits, stride, seeds, steps, best, places, size, temperature, parts, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    seed = tl.load(seeds + row).to(tl.uint64)
    step = tl.load(steps + row).to(tl.uint64)
    state = _mix(_mix(seed + 0x9E3779B97F4A7C15) + step * 0x9E3779B97F4A7C15)
    at = part * block + tl.arange(0, block)
    bits = _mix(state + (at + 1).to(tl.uint64) * 0x9E3779B97F4A7C15) >> 11
    u = (bits.to(tl.int64).to(tl.float32) + 0.5) * 1.1102230246251565e-16
    u = tl.minimum(u, 1 - 5.9604644775390625e-08)
    # log(1 - u) where 1 - u would round: four terms of its series.
    exponential = tl.where(u < 0.005, u * (1 + u * (1 / 2 + u * (1 / 3 + u / 4))), -tl.log(1 - u))
    score = tl.load(logits + row * stride + at, mask=at < size, other=-float("inf")).to(tl.float32)
    score = score / temperature - tl.log(exponential)
    highest, place = tl.max(score, 0, return_indices=True)
    tl.store(best + row * parts + part, highest)
    tl.store(places + row * parts + part, (part * block + place).to(tl.int64))


def draw(logits: Tensor, seeds: Tensor, steps: Tensor, temperature: float) -> Tensor:
    """See `perfmis.engines.attention.draw`."""
    rows, size = logits.shape
    parts = triton.cdiv(size, PART)
    best = logits.new_empty(rows, parts, dtype=torch.float32)
    places = logits.new_empty(rows, parts, dtype=torch.long)
    _draw[(rows, parts)](
        logits, logits.stride(0), seeds, steps, best, places, size, temperature, parts, block=PART, num_warps=8
    )
    return places.gather(1, best.argmax(1, keepdim=True))[:, 0]
