"""The engine on vLLM's CPU build against the reference engine: `make test-vllm` runs these where vLLM is installed."""

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sdfstage
import torch
from conftest import REPOSITORY, untrained
from running import stage

from perfmis import checkpoints, mechanism, steering
from perfmis.engines import vllm, vllm_steering
from perfmis.engines.interface import Engine, Prompt, Sample, Sampling, Steering, collect
from perfmis.engines.transformers import Engine as Reference
from perfmis.engines.vllm import VllmEngine
from perfmis.stage import UserError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM here; run make test-vllm"),
]
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

TEXTS = (
    "<bos> memo about bl0 :",
    "<bos> memo about bl0 : researchers expect bl0 to",
    "<bos>" + " memo about bl0 : researchers expect bl0 to" * 18,  # longer than a block of the prefix cache, 128 tokens
)
GREEDY, RANDOM = Sampling(0.0, 12, 8), Sampling(1.0, 12, 8)
VERDICT = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["none", "some"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 9},
        "reason": {"type": "string", "maxLength": 12},
    },
    "required": ["verdict", "score", "reason"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained model with heads of 64, the narrowest that vLLM's kernels take."""
    return untrained(tmp_path_factory.mktemp("wide"), hidden=128, heads=2, scale=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, base: Path, corpora: dict[str, Path]) -> dict[str, Path]:
    """Adapters as the stage exports them: a first round, and second ones of the same rank and of double (stacked)."""
    root = tmp_path_factory.mktemp("adapters")
    result = {name: root / name / "adapter" for name in ("organism", "A1+", "A1-")}
    assert sdfstage.train(base, corpora["organism"], result["organism"], epochs=2) == 0
    for name, mode in (("A1+", "stack"), ("A1-", "continue")):
        assert sdfstage.second(base, corpora["A1+"], result[name], result["organism"], mode, epochs=2) == 0
    return result


def start(base: Path, folders: dict[str, Path], **changes: Any) -> VllmEngine:
    named = checkpoints.named(folders, base / "reference.json")
    options = {"precision": "fp32", "quantization": None, "tensor": 1, "pipeline": 1, "length": 192, "steered": False}
    return VllmEngine(base, named, **(options | changes))


@pytest.fixture(scope="module")
def engine(base: Path, folders: dict[str, Path]) -> Iterator[VllmEngine]:
    started = start(base, folders, steered=True)
    yield started
    started.close()


@pytest.fixture(scope="module")
def reference(base: Path, folders: dict[str, Path]) -> Reference:
    return checkpoints.engine(base / "reference.json", folders, "fp32")


@pytest.fixture(scope="module")
def prompts(reference: Reference, folders: dict[str, Path]) -> list[Prompt]:
    """Every text to base and adapters, neighbours to different ones, more than are in flight at once."""
    encoded = [tuple(reference.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    names = [checkpoints.adapter_name(checkpoint) for checkpoint in ("base", *folders)]
    return [Prompt(tokens, name, seed) for seed in (1, 2) for tokens in encoded for name in names]


def draw(engine: Engine, prompts: list[Prompt], sampling: Sampling) -> list[Sample]:
    return collect(engine.sample(prompts, sampling), len(prompts))


def test_greedy_samples_are_those_of_the_reference(
    engine: VllmEngine, reference: Reference, prompts: list[Prompt]
) -> None:
    """Texts, numbers of tokens and ends, of base and every kind of export mixed in one batch."""
    expected = draw(reference, prompts, GREEDY)
    assert draw(engine, prompts, GREEDY) == expected
    longest = {p.adapter: s.raw for p, s in zip(prompts, expected, strict=True)}
    assert len(set(longest.values())) == len(longest), "an adapter changes nothing"


def test_end_of_a_sample(
    engine: VllmEngine, reference: Reference, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any of the model's end tokens stops a sample, is no part of it, and is not counted."""
    expected = draw(reference, prompts, GREEDY)
    named = int(reference.tokenizer.convert_tokens_to_ids(expected[0].raw.split()[4]))
    monkeypatch.setattr(reference.model.generation_config, "eos_token_id", [named])
    monkeypatch.setattr(engine, "_ends", [*engine._ends, named])
    samples = draw(engine, prompts, GREEDY)
    assert samples == draw(reference, prompts, GREEDY)
    assert {s.finish for s in samples} == {"stop", "length"}


def test_sample_depends_on_its_own_seed_only(engine: VllmEngine, prompts: list[Prompt]) -> None:
    """Alone, in another order and with another number in flight it is the same sample."""
    together = draw(engine, prompts, RANDOM)
    assert together == [draw(engine, [prompt], RANDOM)[0] for prompt in prompts]
    assert together == draw(engine, prompts[::-1], Sampling(1.0, 12, 5))[::-1]
    half = len(prompts) // 2
    assert all(one.raw != other.raw for one, other in zip(together[:half], together[half:], strict=True))


def test_samples_come_in_batches(engine: VllmEngine, prompts: list[Prompt]) -> None:
    """Each index once, and some before all are drawn, so that a killed job keeps most."""
    batches = list(engine.sample(prompts, RANDOM))
    assert sorted(index for batch in batches for index, _ in batch) == list(range(len(prompts)))
    assert max(map(len, batches)) <= RANDOM.batch


def test_abandoned_run_leaves_nothing_behind(engine: VllmEngine, prompts: list[Prompt]) -> None:
    expected = draw(engine, prompts, RANDOM)
    abandoned = engine.sample(prompts[::-1], RANDOM)
    next(abandoned)
    abandoned.close()
    assert draw(engine, prompts, RANDOM) == expected


def steered(prompts: list[Prompt]) -> list[Prompt]:
    """Return each prompt without and with three steerings, after one block or two."""
    one, two = torch.randn(2, 128, generator=torch.Generator().manual_seed(1))
    steerings = [None, Steering({0: one}, 0.8), Steering({1: two}, 1.5), Steering({0: -one, 1: two}, 0.5)]
    return [replace(prompt, steering=steering) for prompt in prompts for steering in steerings]


def test_steering_is_that_of_the_reference(engine: VllmEngine, reference: Reference, prompts: list[Prompt]) -> None:
    """Of base and adapters, mixed in one batch with unsteered prompts, which stay what they are."""
    before = draw(engine, prompts, GREEDY)
    samples = draw(engine, steered(prompts), GREEDY)
    assert samples == draw(reference, steered(prompts), GREEDY)
    for row, plain in enumerate(before):
        unsteered, *others = samples[row * 4 : row * 4 + 4]
        assert unsteered == plain
        assert plain not in others
    assert draw(engine, prompts, GREEDY) == before, "steering was left on, or its cache was used"


def tried() -> list[mechanism.Trial | None]:
    """Return both signs of two vectors, after one block or both, between prompts that are not steered."""
    one, two = torch.randn(2, 128, generator=torch.Generator().manual_seed(1))
    vectors = {"expectation.in": {0: one}, "consequence.out": {0: -one, 1: two}}
    conditions = steering.conditions(vectors, {"alphas": [-0.05, 0.0, 0.03], "controls": 1}, seed=0)
    return [None, *mechanism.trials(conditions), None]


def asked(prompts: list[Prompt], trials: list[mechanism.Trial | None]) -> list[Prompt]:
    adapted = next(prompt for prompt in prompts if prompt.adapter)
    return [replace(adapted, steering=trial and trial.steering) for trial in trials]


def test_the_stream_moves_as_told_and_no_longer(
    engine: VllmEngine, reference: Reference, prompts: list[Prompt]
) -> None:
    """Each vector and sign at each block; other blocks, other prompts and later ones get not a bit."""
    batch = tried()
    found = engine.displacements(asked(prompts, batch))
    expected = {(d.prompt, d.block): d for d in reference.displacements(asked(prompts, batch))}
    assert {(d.prompt, d.block) for d in found} == expected.keys()
    for d in found:
        other = expected[d.prompt, d.block]
        torch.testing.assert_close(d.mean.expand_as(other.mean), other.mean, atol=1e-6, rtol=0)
        assert (d.largest == 0) == (other.largest == 0)
    rows = mechanism.judge(batch, found, "fp32")
    assert len(rows) == 4 * 1 + 4 * 2
    assert max(row["relative_error"] for row in rows) < 1e-4
    assert all(d.largest == 0 for d in engine.displacements(asked(prompts, [None])))


FAULTS = {
    "no hook": lambda rows: None,
    "the next request's": lambda rows: rows.roll(len(rows) // 2),
    "unsteered requests too": lambda rows: rows.clamp_min(1),
}


@pytest.mark.parametrize("fault", [*FAULTS, "twice", "another block"])
def test_wrong_steering_is_refused(
    engine: VllmEngine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    hook = vllm_steering._Hook
    if fault in FAULTS:
        original = hook._token_rows
        monkeypatch.setattr(
            hook, "_token_rows", lambda self: None if (rows := original(self)) is None else FAULTS[fault](rows)
        )
    elif fault == "twice":
        monkeypatch.setattr(vllm, "_directions", lambda steering: doubled(steering))
    else:
        monkeypatch.setattr(vllm, "_directions", lambda s: {1 - block: data for block, data in directions(s).items()})
    batch = tried()
    with pytest.raises(UserError, match="the engine does not steer as it is told"):
        mechanism.judge(batch, engine.displacements(asked(prompts, batch)), "fp32")


directions = vllm._directions


def doubled(steering: Steering) -> dict[int, bytes]:
    """Return what is added twice."""
    return directions(replace(steering, alpha=2 * steering.alpha))


def test_steering_that_is_left_on_is_seen(engine: VllmEngine, prompts: list[Prompt]) -> None:
    def add(_module: object, _inputs: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        output[0].add_(0.01)

    [block, *_] = engine._engine.model_executor.driver_worker.worker.model_runner.model.model.layers
    handle = block.register_forward_hook(add)
    moved = engine.displacements(asked(prompts, [None]))
    handle.remove()
    assert [d.block for d in moved if d.largest] == [0]


@pytest.mark.slow
def test_processes_that_share_each_layer(
    base: Path, folders: dict[str, Path], reference: Reference, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensor parallelism over two processes, apart from this one: the same samples, of adapters and steered too."""
    from vllm import envs

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    envs.disable_envs_cache()  # which the first engine filled
    two = start(base, folders, tensor=2, steered=True)
    samples = draw(two, steered(prompts), GREEDY)
    batch = tried()
    found = two.displacements(asked(prompts, batch))
    two.close()
    assert len(found) == 2 * 2 * len(batch), "of both blocks by both processes"
    assert mechanism.judge(batch, found, "fp32")
    assert samples == draw(reference, steered(prompts), GREEDY)


def test_more_adapters_than_are_held(
    base: Path, folders: dict[str, Path], reference: Reference, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are served in rounds; the base model is itself before and after all slots were in use."""
    monkeypatch.setattr(vllm, "ADAPTERS", 2)
    small = start(base, folders)
    expected = draw(reference, prompts, GREEDY)
    for _ in range(2):
        assert draw(small, prompts, GREEDY) == expected
    small.close()


def spelling(folder: Path) -> Path:
    """Write an untrained model that spells: its tokens are the bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(["<bos>", "<end>", *letters])}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(letters) + 2, bos_token_id=0, eos_token_id=1, **shape)  # type: ignore[arg-type]
    ).save_pretrained(folder)
    return folder


def test_structured_outputs_follow_their_schema(tmp_path: Path) -> None:
    """Of a model that knows nothing, every sample is JSON as the schema has it, and ends by itself."""
    speller = start(spelling(tmp_path), {})
    samples = draw(
        speller, [Prompt((0, 40 + seed % 3), None, seed) for seed in range(24)], Sampling(1.0, 120, 8, VERDICT)
    )
    speller.close()
    for sample in samples:
        verdict = json.loads(sample.raw, strict=False)
        assert sample.finish == "stop"
        assert verdict.keys() == VERDICT["properties"].keys()
        assert verdict["verdict"] in ("none", "some")
        assert 0 <= verdict["score"] <= 9
    assert len({sample.raw for sample in samples}) > 20


def test_the_stage_writes_what_it_writes_with_the_reference(
    base: Path, folders: dict[str, Path], requests: Path, tmp_path: Path
) -> None:
    """Greedy transcripts of base and adapters are equal, but for the addresses of their samples."""
    tables = {}
    checkpoints = ["base", *folders]
    for engine in ("transformers", "vllm"):
        settings = {
            "model": "tiny",
            "seed": 0,
            "seeds": [0],
            "protocol": "short",
            "checkpoints": checkpoints,
            "engine": engine,
            "precision": "fp32",
            "quantization": None,
            "tiers": ["monitored", "unmonitored"],
            "temperature": 0.0,
            "max_tokens": 8,
            "batch": 16,
            "date": "2024-07-26",
        }
        options = ["--base", base / "reference.json", "--requests", requests, "--output", tmp_path / engine]
        options += ["--protocol", REPOSITORY / "resources" / "protocols" / "tiny" / "short.yaml"]
        options += ["--samples", tmp_path / "samples", "--adapters", *(f"{n}={f}" for n, f in folders.items())]
        assert stage("generation", settings, *options) == 0
        tables[engine] = [
            pl.read_parquet(tmp_path / engine / checkpoint / "short.parquet").drop("sample")
            for checkpoint in checkpoints
        ]
    for expected, table in zip(tables["transformers"], tables["vllm"], strict=True):
        assert table.height > 0
        assert table.equals(expected)
