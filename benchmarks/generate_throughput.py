"""Throughput and correctness of the `transformers` engine on one GPU: plain ``generate`` and continuous batching.

    python benchmarks/generate_throughput.py [--parts kernels exact 8b errors ends step] [--output results.json]
    python benchmarks/generate_throughput.py --toy        # all but kernels and step in seconds on a CPU, to try them

Weights are random and made on the GPU, prompts are random tokens. A rate is new tokens over the wall time of a whole
call of the engine, caches, graphs and reading included; compiled kernels are there already, from a call before.
Each variant is measured twice, and the faster time is given.

Parts: ``kernels``, each kernel against its plain twin; ``exact``, samples of both ways in fp32 on small Llama and
Qwen2 shapes, greedy, drawn and steered; ``8b``, rates at 64 x (1,024 + 128), and where greedy tokens differ in bf16;
``errors``, logits of both ways against fp32; ``ends``, rates where samples end by themselves, after 128 tokens in the
mean; ``step``, where a step's time goes.
"""

import argparse
import copy
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from perfmis.engines import attention, layers
from perfmis.engines.attention import TILE, Rows, Segments
from perfmis.engines.decoding import Decoder
from perfmis.engines.interface import Finished, Prompt, Sample, Sampling, Steering, collect
from perfmis.engines.transformers import Engine

SEED = 0
Way = Callable[[Sequence[Prompt], Sampling], Iterator[Finished]]
LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
}
SMALL = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "vocab_size": 32000,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 997,
}


def engine(family: type, sizes: dict[str, int], dtype: torch.dtype, device: str, rank: int) -> Engine:
    """Return an engine with a random model and a random adapter ``arm``; ends of samples are none."""
    torch.manual_seed(SEED)
    config = family(**sizes, max_position_embeddings=4096, eos_token_id=None, bos_token_id=None)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    network = get_peft_model(model, lora, adapter_name="arm").eval()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(False)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    last = sizes["vocab_size"] - 1
    words = {f"w{i}": i for i in range(last)} | {"<pad>": last}
    core = Tokenizer(WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", padding_side="left")
    return Engine(network, tokenizer, {"arm"})


def prompts(number: int, length: int, shared: int, vocabulary: int, adapter: str | None) -> list[Prompt]:
    """Return prompts of equal length whose first ``shared`` tokens are the same."""
    generator = torch.Generator().manual_seed(SEED)
    beginning = torch.randint(vocabulary, (shared,), generator=generator).tolist()
    rests = torch.randint(vocabulary, (number, length - shared), generator=generator).tolist()
    return [Prompt((*beginning, *rest), adapter, seed) for seed, rest in enumerate(rests)]


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def timed(way: Way, put: list[Prompt], sampling: Sampling, repeats: int = 2) -> tuple[list[Sample], dict[str, Any]]:
    """Return samples, and tokens, seconds, tokens a second and peak memory of the fastest repeat."""
    seconds = []
    for _ in range(repeats):
        clear()
        synchronise()
        start = time.perf_counter()
        samples = collect(way(put, sampling), len(put))
        synchronise()
        seconds.append(time.perf_counter() - start)
    tokens = sum(sample.tokens for sample in samples)
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    best = min(seconds)
    return samples, {
        "tokens": tokens,
        "seconds": round(best, 3),
        "rate": round(tokens / best, 1),
        "all": seconds,
        "peak_gib": round(memory, 1),
    }


def relative(x: torch.Tensor, reference: torch.Tensor) -> float:
    return float((x.double() - reference.double()).norm() / reference.double().norm())


# Parts


def kernels(_toy: bool) -> dict[str, Any]:
    """Return the relative error of each kernel against its plain twin in fp64, beside the twin's own in its dtype."""
    from perfmis.engines import kernels as fast

    found: dict[str, Any] = {}
    torch.manual_seed(SEED)
    for dtype in (torch.bfloat16, torch.float32):
        for count, heads, groups, dim in ((64, 32, 8, 128), (37, 28, 4, 128), (5, 16, 4, 64)):
            page, width = 64, 20
            pages, tiles = count * width + 1, -(-count // TILE)
            key, value = (torch.randn(pages, page, groups, dim, device="cuda", dtype=dtype) for _ in range(2))
            table = (torch.randperm(pages - 1, device="cuda") + 1).view(count, width).int()
            shared = torch.randint(width, (tiles,), device="cuda").int()
            leads = torch.arange(tiles, device="cuda").int() * TILE
            lengths = torch.randint(1, width * page, (count,), device="cuda").int()
            for tile, number in enumerate(shared.tolist()):
                part = slice(tile * TILE, (tile + 1) * TILE)
                table[part, :number] = table[tile * TILE, :number].clone()
                lengths[part] = lengths[part].clamp(min=number * page)
            lengths.clamp_(min=1)
            rows = Rows(table, lengths, leads, shared)
            query = torch.randn(count, (heads + 2 * groups) * dim, device="cuda", dtype=dtype)
            query = query.unflatten(1, (-1, dim))[:, :heads]
            truth = attention.attend_rows(query.double(), key.double(), value.double(), rows, dim**-0.5)
            name = f"rows {count} x {heads}/{groups} x {dim} {dtype}"
            found[name] = [
                relative(m.attend_rows(query, key, value, rows, dim**-0.5), truth) for m in (fast, attention)
            ]
    sizes, pasts = torch.tensor([100, 1, 333, 64]), torch.tensor([0, 640, 64, 64])
    queries, keys = (torch.nn.functional.pad(x.cumsum(0), (1, 0)).int().cuda() for x in (sizes, sizes + pasts))
    key, value = (torch.randn(5000, 8, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    reads = torch.randperm(5000, device="cuda")[: int(keys[-1])]
    place = Segments(reads, queries, keys, 333, 641)
    query = torch.randn(int(sizes.sum()), 32, 128, device="cuda", dtype=torch.bfloat16)
    truth = attention.attend_segments(
        *(x.double().cpu() for x in (query, key, value)),
        Segments(*(x.cpu() if isinstance(x, torch.Tensor) else x for x in place)),
        128**-0.5,
    )
    found["segments"] = [relative(fast.attend_segments(query, key, value, place, 128**-0.5).cpu(), truth)]
    logits = torch.randn(64, 128256, device="cuda") * 2
    seeds, steps = torch.randint(2**62, (64,), device="cuda"), torch.randint(500, (64,), device="cuda")
    drawn = [m.draw(logits, seeds, steps, 0.8) for m in (fast, attention)]
    drawn.append(attention.draw(logits.cpu(), seeds.cpu(), steps.cpu(), 0.8).cuda())
    found["tokens drawn alike of 64: kernel, torch on GPU, torch on CPU"] = [int((d == drawn[0]).sum()) for d in drawn]
    return found


def exact(toy: bool) -> dict[str, Any]:
    """Return how many samples are equal in fp32."""
    found = {}
    for family in (LlamaConfig, Qwen2Config):
        made = engine(family, TINY if toy else SMALL, torch.float32, "cpu" if toy else "cuda", 4 if toy else 16)
        assert layers.known(made.model)
        size = made.model.config.vocab_size
        width = made.model.config.hidden_size
        asked = [p for a in (None, "arm") for p in prompts(24, 200, 150, size, a)]
        asked += [p for a in (None, "arm") for p in prompts(8, 70, 0, size, a)]
        direction = torch.randn(width, generator=torch.Generator().manual_seed(SEED))
        steered = [
            replace(p, steering=[None, Steering({1: direction}, 0.3), Steering({0: direction}, -0.3)][i % 3])
            for i, p in enumerate(asked)
        ]
        for name, temperature, put in (("greedy", 0.0, asked), ("drawn", 1.0, asked), ("steered", 1.0, steered)):
            sampling = Sampling(temperature, 8 if toy else 64, 20)
            # On a GPU, `sample` must choose continuous batching by itself.
            ours = collect(made.continuous(put, sampling, 16) if toy else made.sample(put, sampling), len(put))
            plain = collect(made.batches(put, sampling), len(put))
            found[f"{family.__name__} {name}"] = (
                f"{sum(a == b for a, b in zip(ours, plain, strict=True))} of {len(put)}"
            )
    return found


def words(sample: Sample) -> list[int]:
    return [int(word[1:]) for word in sample.raw.split()]


@torch.inference_mode()
def divergence(made: Engine, put: list[Prompt], ours: list[Sample], plain: list[Sample]) -> dict[str, Any]:
    """Return where two ways part, and by how much the plain model prefers its own token there.

    The margin is the difference of the two tokens' logits in the plain model, which reads prompt and common tokens
    anew, in units of bf16's spacing at the larger one; below one or two, rounding decides.
    """
    places, margins, equal = [], [], 0
    for prompt, one, two in zip(put, ours, plain, strict=True):
        a, b = words(one), words(two)
        first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        equal += min(len(a), len(b)) if first is None else first
        if first is None:
            continue
        with made.using(prompt.adapter) as model:
            ids = torch.tensor([[*prompt.tokens, *b[:first]]], device=model.device)
            logits = model(ids, logits_to_keep=1).logits[0, -1].float()
        top = float(logits.max())
        spacing = 2.0 ** (torch.tensor(top).abs().log2().floor().item() - 7)
        places.append(first)
        margins.append((top - min(float(logits[a[first]]), float(logits[b[first]]))) / spacing)
    margins.sort()
    return {
        "samples equal": len(put) - len(places),
        "tokens before the first difference": f"{equal} of {sum(s.tokens for s in plain)}",
        "first difference, median": sorted(places)[len(places) // 2] if places else None,
        "margin in spacings, median and largest": [margins[len(margins) // 2], margins[-1]] if margins else None,
    }


def large(toy: bool) -> Engine:
    return engine(
        LlamaConfig,
        TINY if toy else LARGE,
        torch.float32 if toy else torch.bfloat16,
        "cpu" if toy else "cuda",
        4 if toy else 64,
    )


def throughput(toy: bool, made: Engine) -> dict[str, Any]:
    """Return rates at equal lengths, and divergences."""
    number, length, shared, new = (8, 40, 32, 8) if toy else (64, 1024, 900, 128)
    sampling = Sampling(0.0, new, number)
    found: dict[str, Any] = {}
    for adapter in (None, "arm"):
        put = prompts(number, length, shared, made.model.config.vocab_size, adapter)
        apart = prompts(number, length, 0, made.model.config.vocab_size, adapter)
        name = adapter or "base"
        collect(made.continuous(put, replace(sampling, max_tokens=2)), number)
        plain, found[f"{name}, generate"] = timed(made.batches, put, sampling)
        ours, found[f"{name}, continuous, 900 shared"] = timed(made.continuous, put, sampling)
        _, found[f"{name}, continuous, none shared"] = timed(made.continuous, apart, sampling)
        drawn = replace(sampling, temperature=1.0)
        _, found[f"{name}, continuous, 900 shared, temperature 1"] = timed(made.continuous, put, drawn)
        found[f"{name}, continuous against generate"] = divergence(made, put, ours, plain)
        quarter = collect(made.batches(put, replace(sampling, batch=max(1, number // 4))), number)
        found[f"{name}, generate in batches of 16 against 64"] = divergence(made, put, quarter, plain)
    return found


@torch.inference_mode()
def errors(toy: bool, made: Engine) -> dict[str, Any]:
    """Return the relative error of logits, of prompts' last tokens and of eight steps, against fp32 weights and all.

    Continuous batching draws the tokens; the other two read them. The adapter is on.
    """
    number, length, shared, new = (4, 40, 32, 9) if toy else (16, 1024, 900, 9)
    put = prompts(number, length, shared, made.model.config.vocab_size, "arm")
    decoder = Decoder(made._network, [], Sampling(1.0, new, number), number, length + new)
    given: list[torch.Tensor] = []
    record = decoder._record

    def keep(rows: torch.Tensor, logits: torch.Tensor) -> None:
        given.append(logits.float())
        record(rows, logits)

    decoder._record, decoder._advance = keep, lambda: decoder._step  # type: ignore[method-assign]
    drawn = dict(pair for part in decoder.sample(put, "arm") for pair in part)
    order = sorted(range(number), key=lambda i: put[i].tokens)  # rows are filled in this order
    ids = torch.tensor([[*put[i].tokens, *drawn[i][:-1]] for i in order], device=made.model.device)
    ours = torch.stack(given[:new], 1)
    with made.using("arm") as model:
        plain = model(ids, logits_to_keep=new).logits.float()
        wide = copy.deepcopy(model).float()
    truth = torch.cat([wide(row[None], logits_to_keep=new).logits for row in ids])
    return {
        name: {"prompt": relative(x[:, 0], truth[:, 0]), "steps": relative(x[:, 1:], truth[:, 1:])}
        for name, x in (("continuous", ours), ("one forward pass", plain))
    }


def ends(toy: bool, made: Engine) -> dict[str, Any]:
    """Return rates where each token ends a sample with probability 1 in 128."""
    number, length, shared, new, batch = (12, 40, 32, 16, 4) if toy else (128, 1024, 900, 384, 64)
    size = made.model.config.vocab_size
    made.model.generation_config.eos_token_id = list(range(0, size, 8 if toy else 128))
    put = prompts(number, length, shared, size, "arm")
    found: dict[str, Any] = {}
    _, found["arm, generate"] = timed(made.batches, put, Sampling(1.0, new, batch), 1)
    for rows in (batch, 2 * batch):
        _, found[f"arm, continuous, {rows} rows"] = timed(made.continuous, put, Sampling(1.0, new, rows))
    made.model.generation_config.eos_token_id = None
    return found


def step(_toy: bool, made: Engine) -> dict[str, Any]:
    """Return milliseconds of a step and of its kernels, 64 rows of 1,024 tokens with 900 shared."""
    found: dict[str, Any] = {}
    sampling = Sampling(1.0, 128, 64)
    put = prompts(64, 1024, 900, made.model.config.vocab_size, "arm")
    decoder = Decoder(made._network, [], sampling, 64, 1152)
    advance: list[Callable[[], None]] = []
    original = decoder._advance
    decoder._advance = lambda: advance.append(original()) or advance[0]  # type: ignore[method-assign, func-returns-value]
    running = decoder.sample(put, "arm")
    decoder._leave = lambda seats: [(0, [])]  # type: ignore[method-assign, assignment]
    start = time.perf_counter()
    next(running)
    synchronise()
    found["seconds to read, capture and draw 8 tokens"] = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(50):
        advance[0]()
    synchronise()
    found["milliseconds a step"] = (time.perf_counter() - start) * 20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(5):
            advance[0]()
        synchronise()
    rows = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)[:24]
    found["kernels, ms a step"] = {
        f"{e.key[:90]} x{e.count // 5}": round(e.self_device_time_total / 5000, 3) for e in rows
    }
    return found


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--parts", nargs="+", default=["kernels", "exact", "8b", "errors", "ends", "step"])
    options.add_argument("--toy", action="store_true")
    options.add_argument("--output", type=Path)
    arguments = options.parse_args()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    found: dict[str, Any] = {"versions": versions, "seed": SEED}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    small: dict[str, Callable[[bool], dict[str, Any]]] = {"kernels": kernels, "exact": exact}
    whole: dict[str, Callable[[bool, Engine], dict[str, Any]]] = {
        "8b": throughput,
        "errors": errors,
        "ends": ends,
        "step": step,
    }
    made: Engine | None = None
    for part in arguments.parts:
        start = time.perf_counter()
        if part in small:
            found[part] = small[part](arguments.toy)
        else:
            made = made or large(arguments.toy)
            found[part] = whole[part](arguments.toy, made)
        found[f"seconds of {part}"] = time.perf_counter() - start
        print(json.dumps({part: found[part]}, indent=1), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
