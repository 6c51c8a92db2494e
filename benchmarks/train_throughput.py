"""Throughput, memory and correctness of LoRA training on one GPU: plain, packed, and `perfmis.fastpath`.

    python benchmarks/train_throughput.py [--parts rate kernels head gradients 8b 70b curve] [--output results.json]
    python benchmarks/train_throughput.py --toy        # the same code in seconds on a CPU, to try it

Weights are random and made on the GPU; documents have log-normal lengths (median 600, sigma 0.7, at most 2,048) and are
the same for all variants of a run. Every step is forward, backward and AdamW on the LoRA weights (rank 64, alpha 128,
all linear layers). Floor: 4 N operations a token (forward, and backward to activations; N are the matmul weights that
a token passes: linear layers and head, not the embedding), at the rate of an 8192³ bf16 product at the start of the
same run. Attention, LoRA, norms, loss and optimizer count as zero, so no variant in bf16 can reach 1. The rate of the
same product after seconds of it, when power limits the clock, is measured too.

Bounds: in bf16, gradients are no further from fp32 than 1.5 times those of `peft`; in fp8, losses of the last 20 of 80
steps differ from those of stock bf16 by less than 0.05 nats in the mean of absolute values; no token of one document
changes any log-probability of another.
"""

import argparse
import gc
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from perfmis import fastpath, fp8

SEED = 0
MEDIAN, SIGMA = 600, 0.7


@dataclass(frozen=True)
class Scale:
    """Sizes of a run."""

    device: str
    dtype: torch.dtype
    length: int
    rows: int
    batches: int
    rank: int
    steps: int
    shapes: dict[str, dict[str, int]]


def shape(width: int, mlp: int, heads: int, groups: int, layers: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
    }


FULL = Scale(
    "cuda",
    torch.bfloat16,
    2048,
    8,
    8,
    64,
    80,
    {
        "8b": shape(4096, 14336, 32, 8, 32, 128256),
        "70b": shape(8192, 28672, 64, 8, 80, 128256),
        "small": shape(1024, 2816, 8, 2, 4, 32000),
    },
)
TOY = Scale(
    "cpu",
    torch.float32,
    64,
    2,
    2,
    4,
    3,
    {
        "8b": shape(32, 64, 4, 2, 2, 61),
        "70b": shape(64, 96, 4, 2, 80, 61),
        "small": shape(32, 64, 4, 2, 2, 61),
    },
)


# Documents and batches


def documents(scale: Scale, vocabulary: int) -> list[torch.Tensor]:
    """Return documents of random tokens that fill the rows of all batches."""
    generator = torch.Generator().manual_seed(SEED)
    budget, lengths = scale.length * scale.rows * scale.batches, []
    while sum(lengths) < budget:
        drawn = math.exp(math.log(MEDIAN * scale.length / 2048) + SIGMA * torch.randn((), generator=generator).item())
        lengths.append(min(scale.length, max(2, round(drawn))))
    made = [torch.randint(vocabulary, (n,), generator=generator) for n in lengths]
    kept = pack(made, scale.length)[: scale.rows * scale.batches]
    order = torch.randperm(sum(len(row) for row in kept), generator=generator).tolist()
    flat = [document for row in kept for document in row]
    return [flat[i] for i in order]


def pack(made: list[torch.Tensor], length: int) -> list[list[torch.Tensor]]:
    """Return rows of whole documents, best fit decreasing, as trl's ``bfd``; fullest rows first."""
    rows: list[list[torch.Tensor]] = []
    left: list[int] = []
    for document in sorted(made, key=len, reverse=True):
        fits = [i for i, room in enumerate(left) if room >= len(document)]
        if fits:
            best = min(fits, key=lambda i: left[i])
            rows[best].append(document)
            left[best] -= len(document)
        else:
            rows.append([document])
            left.append(length - len(document))
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: left[i])]


def padded(made: list[torch.Tensor], scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield batches of one document a row, padded to the longest of the batch."""
    for start in range(0, len(made), scale.rows):
        part = made[start : start + scale.rows]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        known = torch.nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in part], batch_first=True)
        yield {"input_ids": ids, "attention_mask": known, "labels": ids.masked_fill(known == 0, -100)}


def packed(made: list[torch.Tensor], scale: Scale, rows: int, flat: bool) -> Iterator[dict[str, Any]]:
    """Yield batches of packed rows; ``flat``: as trl's padding-free collator gives them, padding a token a document."""
    table = pack(made, scale.length)
    for start in range(0, len(table), rows):
        ids, positions = [], []
        for row in table[start : start + rows]:
            free = scale.length - sum(len(x) for x in row)
            ids.append(torch.cat([*row, torch.zeros(free, dtype=torch.long)]))
            positions.append(torch.cat([*[torch.arange(len(x)) for x in row], torch.zeros(free, dtype=torch.long)]))
        both = {"input_ids": torch.stack(ids), "position_ids": torch.stack(positions)}
        if flat:
            both = {name: x.reshape(1, -1) for name, x in both.items()}
            starts = (both["position_ids"][0] == 0).nonzero()[:, 0].tolist()
            ends = [*starts, both["position_ids"].numel()]
            longest = max(b - a for a, b in pairwise(ends))
            cu = torch.tensor(ends, dtype=torch.int32)
            both |= {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": longest, "max_length_k": longest}
        yield both | {"labels": both["input_ids"].masked_fill(both["position_ids"] == 0, -100)}


# Models


def build(scale: Scale, sizes: dict[str, int], attention: str, trained: bool = True) -> Any:
    """Return a random model with LoRA; ``trained``: as if B had moved from zero."""
    torch.manual_seed(SEED)
    config = LlamaConfig(**sizes, attn_implementation=attention, use_cache=False, max_position_embeddings=scale.length)
    torch.set_default_dtype(scale.dtype)
    with torch.device(scale.device):
        model = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    lora = LoraConfig(r=scale.rank, lora_alpha=2 * scale.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    network = get_peft_model(model, lora)
    for name, parameter in network.named_parameters():
        if trained and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return network.train()


def stock(scale: Scale, sizes: dict[str, int], checkpointing: bool, trained: bool = True) -> Any:
    """Return a model as transformers and peft have it."""
    network = build(scale, sizes, "sdpa", trained)
    if checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
        network.enable_input_require_grads()
    return network


def ours(scale: Scale, sizes: dict[str, int], eight: bool, trained: bool = True) -> Any:
    """Return a model on the fast path."""
    fastpath.register_attention()
    network = build(scale, sizes, fastpath.ATTENTION, trained)
    fastpath.prepare(network, fp8=eight, checkpointing=False)
    fastpath.fuse_head(network.get_base_model())
    return network


def loss_of(network: Any, batch: dict[str, Any], scale: Scale) -> torch.Tensor:
    """Return the loss of a batch under the autocast that a trainer uses."""
    content = {k: v.to(scale.device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    fused = {"fused_lm_head": True} if "cu_seq_lens_q" in batch else {}
    with torch.autocast(scale.device, torch.bfloat16, enabled=scale.dtype == torch.bfloat16):
        loss: torch.Tensor = network(**content, **fused).loss
    return loss


def optimizer_of(network: Any, rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=rate, weight_decay=0, fused=True)


def step(network: Any, optimizer: torch.optim.AdamW, batch: dict[str, Any], scale: Scale) -> torch.Tensor:
    loss = loss_of(network, batch, scale)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def synchronise(scale: Scale) -> None:
    if scale.device == "cuda":
        torch.cuda.synchronize()


def clear(scale: Scale) -> None:
    gc.collect()
    if scale.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(scale: Scale) -> float:
    """Return the greatest memory of tensors since `clear`, in GiB."""
    return torch.cuda.max_memory_allocated() / 2**30 if scale.device == "cuda" else math.nan


# Rates


def milliseconds(work: Callable[[], Any], scale: Scale, repeats: int) -> float:
    work()
    synchronise(scale)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronise(scale)
    return (time.perf_counter() - start) * 1000 / repeats


def rates(scale: Scale) -> dict[str, float]:
    """Return TFLOP/s of a square bf16 product, in 20 repeats and after seconds of them, when power limits the clock."""
    size = 8192 if scale.device == "cuda" else 128
    a, b = (torch.randn(size, size, device=scale.device, dtype=scale.dtype) for _ in range(2))
    work = 2 * size**3 / 1e9
    for _ in range(3):
        a @ b
    burst = work / milliseconds(lambda: a @ b, scale, 20)
    return {"burst": burst, "sustained": work / milliseconds(lambda: a @ b, scale, 2000 if size == 8192 else 20)}


# Correctness


def relative(x: torch.Tensor, reference: torch.Tensor) -> float:
    return float((x.float() - reference.float()).norm() / reference.float().norm())


def kernels(scale: Scale) -> dict[str, float]:
    """Return the greatest relative error of each kernel against its plain twin."""
    if scale.device != "cuda":
        return {}
    from perfmis import kernels as fast

    plain, worst = fastpath.Plain, dict[str, float]()

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=scale.device, dtype=torch.bfloat16)

    def note(name: str, x: Any, y: Any) -> None:
        for one, two in zip(x, y, strict=True):
            if isinstance(one, fp8.Rows):
                width = two.values.shape[1] - 64
                one, two = (rows.values[:, :width].float() * rows.scale for rows in (one, two))
            if one is not None:
                worst[name] = max(worst.get(name, 0.0), relative(one, two))

    torch.manual_seed(SEED)
    count, dim = 777, 128
    for width, mlp, heads, groups in ((1024, 2816, 8, 2), (4096, 14336, 32, 8), (8192, 28672, 64, 8)):
        for room in (None, 64):
            x, delta, weight, dn, residual = draw(count, width), draw(count, width), draw(width), *draw(2, count, width)
            a, b = (draw(count, width + 64)[:, :width] for _ in range(2))
            one, two = (k.normalise(x, delta, weight, 1e-5, to, room) for k, to in ((fast, a), (plain, b)))
            note("normalise", (*one, a), (*two, b))
            rstd = two[1]
            note(
                "normalise_backward",
                *(k.normalise_backward(dn, x, rstd, weight, residual, room) for k in (fast, plain)),
            )
            y, dx = draw(count, 2 * mlp), draw(count, mlp)
            a, b = (draw(count, mlp + 64)[:, :mlp] for _ in range(2))
            note("gate", (fast.gate(y, a, room), a), (plain.gate(y, b, room), b))
            a, b = (draw(count, 2 * mlp + 64)[:, : 2 * mlp] for _ in range(2))
            note("gate_backward", (fast.gate_backward(y, dx, a, room), a), (plain.gate_backward(y, dx, b, room), b))
            angle = torch.rand(count, dim // 2, device=scale.device).repeat(1, 2) * 6
            turn = angle.cos().bfloat16(), angle.sin().bfloat16()
            total = (heads + 2 * groups) * dim
            a = draw(count, total)
            b = a.clone()
            for to, k in ((a, fast), (b, plain)):
                k.rotate(to, *turn, heads + groups)
            note("rotate", (a,), (b,))
            parts = [draw(count, n, dim) for n in (heads, groups, groups)]
            a, b = (draw(count, total + 64)[:, :total] for _ in range(2))
            one, two = (k.rotate_backward(*parts, *turn, to, room) for k, to in ((fast, a), (plain, b)))
            note("rotate_backward", (one, a), (two, b))
        one, two = fast.quantise(dx, 64), plain.quantise(dx, 64)
        note("quantise", (one,), (two,))
        for rows, k in ((one, fast), (two, plain)):
            k.fill(rows, dn[:, :64])
        note("fill", (one.values[:, -64:].float(),), (two.values[:, -64:].float(),))
        a, targets = draw(count, 32003), torch.randint(32003, (count,), device=scale.device)
        targets[::7] = -100
        b = a.clone()
        one, two = fast.score(a, targets), plain.score(b, targets)
        note("score", (a, *one), (b, *two))
    return worst


def gradients(scale: Scale) -> dict[str, Any]:
    """Compare loss and LoRA gradients with an fp32 model that reads each document alone, and test isolation."""
    sizes = scale.shapes["small"]
    made = documents(scale, sizes["vocab_size"])
    batch = next(packed(made, scale, scale.rows, flat=True))
    positions = batch["position_ids"][0]
    starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(positions)]
    alone = [batch["input_ids"][:, a:b].to(scale.device) for a, b in pairwise(starts) if b - a > 1]
    count = sum(x.shape[1] - 1 for x in alone)

    def apart(network: Any, dtype: torch.dtype) -> float:
        total = 0.0
        for ids in alone:
            with torch.autocast(scale.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = network(input_ids=ids, labels=ids).loss * ((ids.shape[1] - 1) / count)
            loss.backward()
            total += loss.item()
        return total

    def collected(network: Any) -> torch.Tensor:
        return torch.cat([p.grad.flatten().float() for p in network.parameters() if p.grad is not None])

    network = stock(scale, sizes, False)
    start = network.state_dict()
    wide = stock(Scale(**{**vars(scale), "dtype": torch.float32}), sizes, False)
    wide.load_state_dict(start)
    truth = apart(wide, torch.float32)
    reference = collected(wide)
    found = {"stock bf16": apart(network, scale.dtype)}
    errors = {"stock bf16": relative(collected(network), reference)}
    isolation = {}
    for name, eight in (("fast bf16", False), ("fast fp8", True)):
        network = ours(scale, sizes, eight)
        loss = loss_of(network, batch, scale)
        loss.backward()
        found[name], errors[name] = loss.item(), relative(collected(network), reference)
        changed = dict(batch, input_ids=batch["input_ids"].clone())
        end = starts[1]
        changed["input_ids"][:, :end] = (changed["input_ids"][:, :end] + 7) % sizes["vocab_size"]
        with torch.no_grad():
            before, after = (scores(network, b, scale) for b in (batch, changed))
        isolation[name] = {
            "other documents": float((before - after)[end:].abs().max()),
            "own document": float((before - after)[: end - 1].abs().max()),
        }
    return {
        "loss": truth,
        "loss difference": {k: v - truth for k, v in found.items()},
        "gradient error": errors,
        "greatest change of a log-probability when one document changes": isolation,
    }


def scores(network: Any, batch: dict[str, Any], scale: Scale) -> torch.Tensor:
    content = {k: v.to(scale.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    result: torch.Tensor = network(**content, fused_lm_head=True).log_probs[0]
    return result


# Throughput


@dataclass
class Row:
    """One measured variant."""

    variant: str
    tokens_per_second: float
    milliseconds_per_1k: float
    share: float
    ratio: float
    peak_gib: float
    note: str = ""


@dataclass
class Table:
    """Variants of one model: the first is the baseline."""

    floor: float  # milliseconds per 1,000 tokens
    rows: list[Row] = field(default_factory=list)

    def add(self, variant: str, tokens: float, seconds: float, peak_gib: float, note: str = "") -> None:
        measured = seconds / tokens * 1e6
        base = self.rows[0].milliseconds_per_1k if self.rows else measured
        row = Row(variant, tokens / seconds, measured, self.floor / measured, base / measured, peak_gib, note)
        self.rows.append(row)
        print(
            f"  {variant:42} {row.tokens_per_second:8.0f} tokens/s {measured:8.2f} ms/1k share {row.share:.3f} "
            f"ratio {row.ratio:5.2f} peak {peak_gib:6.1f} GiB {note}",
            flush=True,
        )


def weights(sizes: dict[str, int]) -> tuple[int, int]:
    """Return the matmul weights of one decoder layer, and those of the head."""
    width, dim = sizes["hidden_size"], sizes["hidden_size"] // sizes["num_attention_heads"]
    key = dim * sizes["num_key_value_heads"]
    return 2 * width * width + 2 * width * key + 3 * width * sizes["intermediate_size"], width * sizes["vocab_size"]


Variant = tuple[str, Callable[[dict[str, int]], Any], Callable[[], Iterator[dict[str, Any]]]]


def variants(scale: Scale, made: list[torch.Tensor]) -> list[Variant]:
    half = max(1, scale.rows // 2)
    return [
        ("padded, checkpointing", lambda s: stock(scale, s, True), lambda: padded(made, scale)),
        ("packed, checkpointing", lambda s: stock(scale, s, True), lambda: packed(made, scale, scale.rows, False)),
        ("packed, half the batch", lambda s: stock(scale, s, False), lambda: packed(made, scale, half, False)),
        ("fast path, bf16", lambda s: ours(scale, s, False), lambda: packed(made, scale, scale.rows, True)),
        ("fast path, fp8", lambda s: ours(scale, s, True), lambda: packed(made, scale, scale.rows, True)),
    ]


def epoch(network: Any, batches: list[dict[str, Any]], scale: Scale) -> float:
    """Return the seconds of a pass over all batches, after a step on the first and on the largest."""
    optimizer = optimizer_of(network, 1e-5)
    for batch in (batches[0], max(batches, key=lambda b: b["input_ids"].numel())):
        step(network, optimizer, batch, scale)
    synchronise(scale)
    start = time.perf_counter()
    for batch in batches:
        step(network, optimizer, batch, scale)
    synchronise(scale)
    return time.perf_counter() - start


def throughput(scale: Scale, rate: float) -> Table:
    """Measure all variants on a whole model of the 8B shape."""
    sizes = scale.shapes["8b"]
    layer, head = weights(sizes)
    table = Table(4 * (layer * sizes["num_hidden_layers"] + head) / (rate * 1e12) * 1e6)
    made = documents(scale, sizes["vocab_size"])
    tokens = sum(len(x) for x in made)
    print(f"8B shape: {len(made)} documents, {tokens} tokens, floor {table.floor:.2f} ms per 1k", flush=True)
    for name, model, batches in variants(scale, made):
        clear(scale)
        network = None
        try:
            network = model(sizes)
            table.add(name, tokens, epoch(network, list(batches()), scale), peak(scale))
        except torch.OutOfMemoryError:
            print(f"  {name}: out of memory", flush=True)
        del network
    return table


def throughput_cut(scale: Scale, rate: float) -> Table:
    """Measure layers of the 70B width, and scale: time = head and embedding + 80 × the time of a layer."""
    sizes = scale.shapes["70b"]
    layers = sizes["num_hidden_layers"]
    layer, head = weights(sizes)
    table = Table(4 * (layer * layers + head) / (rate * 1e12) * 1e6)
    made = documents(scale, sizes["vocab_size"])
    tokens = sum(len(x) for x in made)
    few, more = 2, 6
    print(f"70B width: {few} and {more} of {layers} layers, floor {table.floor:.2f} ms per 1k", flush=True)
    for name, model, batches in variants(scale, made):
        if "half" in name or "packed, ch" in name:
            continue
        seconds = []
        for count in (few, more):
            clear(scale)
            network = model(sizes | {"num_hidden_layers": count})
            seconds.append(epoch(network, list(batches()), scale))
            del network
        each = (seconds[1] - seconds[0]) / (more - few)
        rest = seconds[0] - few * each
        table.add(name, tokens, rest + layers * each, peak(scale), f"(of {more} layers)")
    return table


# Loss curves


def source(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a Markov source: for each of at most 64 tokens four successors, (tokens, 4), and their probabilities."""
    generator = torch.Generator().manual_seed(SEED)
    tokens = min(64, vocabulary)
    return torch.randint(tokens, (tokens, 4), generator=generator), torch.tensor([0.7, 0.1, 0.1, 0.1])


def curve(scale: Scale, steps: int) -> dict[str, Any]:
    """Return the losses of real training on a learnable source: stock, and the fast path in bf16 and fp8."""
    sizes = scale.shapes["8b"]
    after, share = source(sizes["vocab_size"])
    rows = max(1, scale.rows // 4)
    wanted = Scale(**{**vars(scale), "rows": rows, "batches": steps})
    made = documents(wanted, sizes["vocab_size"])
    generator = torch.Generator().manual_seed(SEED + 1)
    for document in made:
        chosen = torch.multinomial(share, len(document), replacement=True, generator=generator).tolist()
        table, token = after.tolist(), int(document[0]) % len(after)
        for i, choice in enumerate(chosen):
            document[i] = token
            token = table[token][choice]
    losses = {}
    for name, model, flat in (
        ("stock bf16", lambda: stock(scale, sizes, False, trained=False), False),
        ("fast bf16", lambda: ours(scale, sizes, False, trained=False), True),
        ("fast fp8", lambda: ours(scale, sizes, True, trained=False), True),
    ):
        clear(scale)
        network = model()
        optimizer = optimizer_of(network, 3e-4)
        found = []
        batches = list(packed(made, scale, rows, flat))
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(SEED)).tolist()
        for i in order[:steps]:
            found.append(step(network, optimizer, batches[i], scale))
        losses[name] = torch.stack(found).tolist()
        print(f"  {name:12}", " ".join(f"{x:.3f}" for x in losses[name][:: max(1, steps // 10)]), flush=True)
        del network, optimizer
    entropy = -(share * share.log()).sum().item()
    base = torch.tensor(losses["stock bf16"])
    apart = {name: (torch.tensor(x) - base)[-20:] for name, x in losses.items()}
    difference = {name: {"mean": x.mean().item(), "mean absolute": x.abs().mean().item()} for name, x in apart.items()}
    return {"entropy of the source": entropy, "losses": losses, "last 20 steps against stock": difference}


def head(scale: Scale) -> dict[str, float]:
    """Return milliseconds of the head and loss, forward and backward, of this package and, if it is there, trl."""
    sizes = scale.shapes["8b"]
    count, width = scale.length * scale.rows, sizes["hidden_size"]
    hidden = torch.randn(count, width, device=scale.device, dtype=scale.dtype, requires_grad=True)
    weight = torch.randn(sizes["vocab_size"], width, device=scale.device, dtype=scale.dtype) * 0.02
    targets = torch.randint(sizes["vocab_size"], (count,), device=scale.device)

    def fast() -> None:
        fastpath.log_probabilities(hidden, weight, targets)[0].sum().backward()

    found = {"perfmis": milliseconds(fast, scale, 5)}
    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer import utils  # noqa: F401  # its backward pass imports it
    except ImportError:
        return found
    kept = ("log_probs", "entropy", "is_top1")

    def theirs() -> None:
        ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, kept)[0].sum().backward()

    return found | {"trl": milliseconds(theirs, scale, 5)}


def main() -> None:
    parts = ("rate", "kernels", "head", "gradients", "8b", "70b", "curve")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--toy", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--output", type=Path, help="file for all numbers, JSON")
    arguments = parser.parse_args()
    scale = TOY if arguments.toy else FULL
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if scale.device == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "seed": SEED,
        "median": MEDIAN,
        "sigma": SIGMA,
    }
    print(json.dumps(result), flush=True)
    result["rate"] = rates(scale)
    print("TFLOP/s of an 8192³ product in bf16:", result["rate"], flush=True)
    rate = result["rate"]["burst"]
    calls: dict[str, Callable[[], Any]] = {
        "kernels": lambda: kernels(scale),
        "head": lambda: head(scale),
        "gradients": lambda: gradients(scale),
        "8b": lambda: asdict(throughput(scale, rate)),
        "70b": lambda: asdict(throughput_cut(scale, rate)),
        "curve": lambda: curve(scale, scale.steps),
    }
    for name, call in calls.items():
        if name in arguments.parts:
            start = time.perf_counter()
            result[name] = call()
            shown = {k: v for k, v in result[name].items() if k not in ("rows", "losses")}
            print(f"{name} ({time.perf_counter() - start:.0f} s):", json.dumps(shown), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
