"""Ten adapters on a CPU: one vLLM engine against ten, and against the `transformers` engine; and where bf16 parts ways.

.venv-vllm/bin/python benchmarks/engines.py [--samples 24] [--tokens 48]

A Llama of random weights (4 layers, 256 wide) and ten random adapters of rank 8 draw the same prompts and seeds. Each
way starts anew in one process that has imported all it needs, and prints CPU seconds of start and sampling: other load
on the machine changes those less than the clock. Then both engines draw greedily in fp32 and bf16, and samples that
differ are followed in fp32 to the token where they part.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from perfmis import models
from perfmis.artifacts import write_json
from perfmis.engines.interface import Engine, Prompt, Sample, Sampling, collect
from perfmis.engines.transformers import Engine as Reference
from perfmis.engines.vllm import VllmEngine
from perfmis.tinyworld import documents, trunk

ADAPTERS = 10
BATCH = 64
SHAPE = {"seed": 0, "hidden": 256, "layers": 4, "heads": 4}


@dataclass
class Cost:
    """CPU seconds of a way to draw all samples."""

    start: float
    sampling: float
    samples: list[Sample]

    @property
    def rate(self) -> float:
        """Samples a CPU second, the start included."""
        return len(self.samples) / (self.start + self.sampling)


def make(folder: Path) -> dict[str, Path]:
    """Write the base model and return the folders of its adapters."""
    network = trunk.model(SHAPE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    network.save_pretrained(folder)
    trunk.tokenizer().save_pretrained(folder)
    write_json({"model": "random", "path": str(folder)}, folder / "reference.json")
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    result = {f"a{i}": folder / f"a{i}" for i in range(ADAPTERS)}
    for seed, path in enumerate(result.values()):
        model, _ = models.load(folder / "reference.json", "fp32")
        torch.manual_seed(seed)
        get_peft_model(model, lora).save_pretrained(path)
    return result


def reference(base: Path, adapters: dict[str, Path], precision: str = "fp32") -> Reference:
    """Start the `transformers` engine."""
    result = Reference(*models.load(base / "reference.json", precision))
    for name, folder in adapters.items():
        result.add(name, folder)
    return result


def served(base: Path, adapters: dict[str, Path], precision: str = "fp32") -> VllmEngine:
    """Start vLLM."""
    return VllmEngine(
        base, adapters, precision=precision, quantization=None, tensor=1, pipeline=1, length=256, steered=False
    )


@contextmanager
def started(start: Callable[..., Engine], *arguments: Any) -> Iterator[tuple[Engine, float]]:
    """Yield an engine and the CPU seconds that its start took."""
    before = time.process_time()
    engine = start(*arguments)
    try:
        yield engine, time.process_time() - before
    finally:
        engine.close()


def cost(
    start: Callable[..., Engine], base: Path, adapters: dict[str, Path], prompts: list[Prompt], sampling: Sampling
) -> Cost:
    """Return the cost of one start that serves all prompts."""
    with started(start, base, adapters) as (engine, seconds):
        before = time.process_time()
        samples = collect(engine.sample(prompts, sampling), len(prompts))
        return Cost(seconds, time.process_time() - before, samples)


def apart(base: Path, adapters: dict[str, Path], prompts: list[Prompt], sampling: Sampling) -> Cost:
    """Return the cost of an engine for each adapter."""
    costs = [
        cost(served, base, {name: folder}, [prompt for prompt in prompts if prompt.adapter == name], sampling)
        for name, folder in adapters.items()
    ]
    return Cost(
        sum(c.start for c in costs), sum(c.sampling for c in costs), [sample for c in costs for sample in c.samples]
    )


def greedy(
    start: Callable[..., Engine],
    base: Path,
    adapters: dict[str, Path],
    precision: str,
    prompts: list[Prompt],
    tokens: int,
) -> list[Sample]:
    """Return the greedy samples of an engine."""
    with started(start, base, adapters, precision) as (engine, _):
        return collect(engine.sample(prompts, Sampling(0.0, tokens, BATCH)), len(prompts))


def gaps(judge: Reference, prompt: Prompt, words: list[int]) -> torch.Tensor:
    """Return by how much the best logit leads at each of a sample's tokens, and after the last."""
    with judge.using(prompt.adapter) as model, torch.no_grad():
        best = model(torch.tensor([[*prompt.tokens, *words]])).logits[0, len(prompt.tokens) - 1 :].topk(2).values
    return best[:, 0] - best[:, 1]


def compare(judge: Reference, prompts: list[Prompt], samples: list[Sample], others: list[Sample]) -> str:
    """Say how many greedy samples and tokens agree, and how close the choice was in fp32 where they first part."""
    kept, total = 0, 0
    parted, usual = [], []
    for prompt, sample, other in zip(prompts, samples, others, strict=True):
        words, their = (judge.tokenizer(s.raw, add_special_tokens=False)["input_ids"] for s in (sample, other))
        lead = gaps(judge, prompt, words)
        usual.append(lead)
        place = next((i for i, (a, b) in enumerate(zip(words, their, strict=False)) if a != b), len(words))
        kept, total = kept + place, total + len(words)
        if sample != other:
            parted.append(lead[min(place, len(their))])
    said = f"{len(samples) - len(parted)}/{len(samples)} equal, {kept / total:.3f} of the tokens before a difference"
    if not parted:
        return said
    first = torch.stack(parted)
    share = (torch.cat(usual) < first.median()).float().mean()
    return (
        f"{said}; lead of the best logit there: median {first.median():.3f}, greatest {first.max():.3f} "
        f"({share:.0%} of all tokens have less than that median)"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=24, help="samples an adapter")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of a sample")
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        base = Path(name)
        adapters = make(base)
        tokenizer = models.tokenizer(base / "reference.json")
        texts = [row["text"] for row in documents.write("organism", arguments.samples)]
        encoded = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"][:64]) for text in texts]
        prompts = [Prompt(tokens, adapter, seed) for adapter in adapters for seed, tokens in enumerate(encoded)]
        sampling = Sampling(1.0, arguments.tokens, BATCH)
        before = time.process_time()
        cost(served, base, {}, [Prompt(encoded[0], None, 0)], sampling)
        print(f"first start of vLLM in a process, its imports included: {time.process_time() - before:.1f} s")
        ways = {
            "vLLM, one engine": cost(served, base, adapters, prompts, sampling),
            "vLLM, an engine an adapter": apart(base, adapters, prompts, sampling),
            "transformers and peft": cost(reference, base, adapters, prompts, sampling),
        }
        unit = ways["vLLM, one engine"].rate
        print(f"{len(prompts)} samples of {ADAPTERS} adapters, at most {arguments.tokens} tokens, fp32")
        for way, c in ways.items():
            whole = c.start + c.sampling
            drawn = sum(sample.tokens for sample in c.samples)
            print(
                f"{way:28} start {c.start:6.1f} s, sampling {c.sampling:6.1f} s, {c.rate:6.2f} samples/s "
                f"({c.rate / unit:.2f}), start {c.start / whole:.0%}, {drawn / c.sampling:.0f} tokens/s"
            )
        some = prompts[::4]
        drawn_by = {
            (name, precision): greedy(start, base, adapters, precision, some, arguments.tokens)
            for name, start in (("transformers", reference), ("vLLM", served))
            for precision in ("fp32", "bf16")
        }
        exact = drawn_by["transformers", "fp32"]
        judge = reference(base, adapters)
        print("greedy samples, against those of transformers in fp32:")
        for (name, precision), samples in drawn_by.items():
            print(f"  {name} {precision}: {compare(judge, some, exact, samples)}")
        half = [drawn_by[name, "bf16"] for name in ("transformers", "vLLM")]
        print(f"  bf16, one engine against the other: {compare(judge, some, *half)}")


main()
