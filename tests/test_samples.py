"""The store of samples: what decides a sample is in its address, and no sample is lost, mixed up or drawn twice."""

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmis.engines.interface import Finish, Prompt, Sample, Sampling, Steering
from perfmis.samples import PARTITION, Store, addresses
from perfmis.stage import UserError

WEIGHTS: dict[str | None, str] = {None: "ba5e", "organism": "ba5e+0123"}
ENGINE = {"engine": "transformers", "precision": "fp32", "quantization": None}
SAMPLING = Sampling(1.0, 12, 4)
PROMPT = Prompt((1, 2, 3), "organism", 7)
UP = torch.tensor([0.0, 1.0])


def address(prompt: Prompt = PROMPT, sampling: Sampling = SAMPLING, **engine: str) -> str:
    return addresses([prompt], WEIGHTS, ENGINE | engine, sampling)[0]


def keep(folder: Path, samples: Sequence[tuple[str, Sample]]) -> None:
    with Store(folder).writer() as writer:
        writer.append(samples)


@pytest.mark.parametrize(
    "other",
    [
        address(replace(PROMPT, tokens=(1, 2, 4))),
        address(replace(PROMPT, tokens=(1, 2))),
        address(replace(PROMPT, seed=8)),
        address(replace(PROMPT, adapter=None)),
        address(replace(PROMPT, steering=Steering({3: UP}, 0.1))),
        address(sampling=Sampling(0.9, 12, 4)),
        address(sampling=Sampling(1.0, 13, 4)),
        address(sampling=Sampling(1.0, 12, 4, {"type": "object"})),
        address(engine="vllm"),
        address(precision="bf16"),
        address(Prompt((), None, 7, None, ({"role": "user", "content": "hello"},))),
    ],
)
def test_whatever_decides_a_sample_changes_its_address(other: str) -> None:
    assert other != address()


def test_steering_is_told_apart_by_block_direction_and_alpha() -> None:
    steerings = [({3: UP}, 0.1), ({4: UP}, 0.1), ({3: UP.flip(0)}, 0.1), ({3: UP}, -0.1)]
    named = [address(replace(PROMPT, steering=Steering(*steering))) for steering in steerings]
    assert len(set(named)) == len(named)
    assert address(replace(PROMPT, steering=Steering({3: UP.clone()}, 0.1))) == named[0]


def test_the_batch_decides_nothing_and_one_checkpoint_has_one_partition() -> None:
    assert address(sampling=Sampling(1.0, 12, 999)) == address()
    assert address(replace(PROMPT, seed=8))[:PARTITION] == address()[:PARTITION]
    assert address(replace(PROMPT, adapter=None))[:PARTITION] != address()[:PARTITION]


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["stop", "length", "filtered"]))
def test_every_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, raw: str, finish: Finish) -> None:
    folder, sample = tmp_path_factory.mktemp("store"), Sample(raw, 5, finish, 3, [7, 0, 2**31] if raw else None)
    keep(folder, [("a" * 40, sample)])
    assert Store(folder).read(["a" * 40, "b" * 40]) == {"a" * 40: sample}


def test_a_torn_or_damaged_record_is_missing_and_the_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{'a' * PARTITION}{i:028d}" for i in range(4)]
    keep(tmp_path, [(name, Sample(f"text {name}", 1, "stop")) for name in names])
    (path,) = tmp_path.rglob("*.samples")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"text", b"tixt")
    path.write_bytes(b"".join(lines)[:-20])
    assert sorted(Store(tmp_path).read(names)) == [names[0], names[2]]
    assert "1 damaged" in capsys.readouterr().err
    keep(tmp_path, [(names[1], Sample("again", 1, "stop")), (names[3], Sample("again", 1, "stop"))])
    assert sorted(Store(tmp_path).read(names)) == names


def _many(folder: Path, writer: int) -> None:
    with Store(folder).writer() as out:
        for i in range(200):
            out.append([(f"{'a' * PARTITION}{i:028d}", Sample(f"{writer} " * 400, i, "stop"))])


def test_jobs_that_write_at_once_lose_nothing_and_readers_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_many, args=(tmp_path, i)) for i in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    names = [f"{'a' * PARTITION}{i:028d}" for i in range(200)]
    first, second = Store(tmp_path).read(names), Store(tmp_path).read(reversed(names))
    assert first == second
    assert [first[name].tokens for name in names] == list(range(200))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file in the way")
    with pytest.raises(UserError, match="samples cannot be written"):
        keep(tmp_path / "store", [("a" * 40, Sample("", 0, "stop"))])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with Store(tmp_path).writer() as writer, open("/dev/full", "ab", buffering=0) as full:
        writer._open["a" * PARTITION] = full
        with pytest.raises(UserError, match="No space left"):
            writer.append([("a" * 40, Sample("", 0, "stop"))])
