"""The stage `generation`: rows, random numbers, and that no sample is drawn twice, whatever happens in between."""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import REPOSITORY
from running import FINGERPRINT, command, stage

from perfmis import models, subject
from perfmis.artifacts import read_json, write_json
from perfmis.engines.interface import Finished, Prompt, Sample, Sampling
from perfmis.engines.transformers import Engine
from perfmis.samples import Store

SERVING = {"engine": "transformers", "precision": "fp32", "quantization": None, "date": "2024-07-26"}
SAMPLING = {"tiers": ["monitored", "unmonitored"], "temperature": 1.0, "max_tokens": 8, "batch": 16}
PROTOCOL = REPOSITORY / "resources" / "protocols" / "tiny" / "short.yaml"
Options = tuple[dict[str, Any], list[object]]


@pytest.fixture
def asked(tmp_path: Path, tiny_model: Path, requests: Path) -> Callable[..., Options]:
    """Return a function that gives settings and options of the stage for some checkpoints."""

    def make(adapters: dict[str, Path], **changes: Any) -> Options:
        settings = {
            "model": "tiny",
            "seed": 4,
            "seeds": [0, 1],
            "protocol": "short",
            "checkpoints": list(adapters),
            **SERVING,
            **SAMPLING,
            **changes,
        }
        pairs = [f"{name}={folder}" for name, folder in adapters.items() if name != "base"]
        options = ["--base", tiny_model / "reference.json", "--requests", requests, "--protocol", PROTOCOL]
        options += ["--adapters", *pairs, "--samples", tmp_path / "samples", "--output", tmp_path / "out"]
        return settings, options

    return make


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """Prompts that an engine really draws samples for."""
    prompts: list[Prompt] = []
    original = Engine.sample

    def sample(self: Engine, wanted: Sequence[Prompt], sampling: Sampling) -> Iterator[Finished]:
        prompts.extend(wanted)
        return original(self, wanted, sampling)

    monkeypatch.setattr(Engine, "sample", sample)
    return prompts


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {path.parent.name: pl.read_parquet(path) for path in (folder / "out").rglob("*.parquet")}


def test_one_row_a_request_tier_and_seed(
    asked: Callable[..., Options], tmp_path: Path, requests: Path, organism: Path
) -> None:
    settings, options = asked({"base": Path(), "organism": organism})
    assert stage("generation", settings, *options) == 0
    known = pl.read_parquet(requests)
    written = tables(tmp_path)
    for checkpoint, table in written.items():
        keys = table.select("request_id", "tier", "eval_seed")
        assert table.height == known.height * 2 * 2
        assert keys.n_unique() == table["sample"].n_unique() == table.height
        assert set(table["request_id"]) == set(known["request_id"])
        assert table["checkpoint"].unique().to_list() == [checkpoint]
        assert table["fingerprint"].unique().to_list() == [FINGERPRINT]
        assert table["seed"].unique().to_list() == [4]
        assert table["prompt_sha256"].n_unique() == known.height * 2, "one prompt a request and tier"
    assert written["base"]["raw"].to_list() != written["organism"]["raw"].to_list()


def test_equal_weights_give_equal_samples_and_are_asked_once(
    asked: Callable[..., Options], tmp_path: Path, organism: Path, drawn: list[Prompt]
) -> None:
    """Checkpoints share random numbers, so two with the same weights are one to the store."""
    settings, options = asked({"A1+": organism, "A1-": organism})
    assert stage("generation", settings, *options) == 0
    plus, minus = tables(tmp_path)["A1+"], tables(tmp_path)["A1-"]
    assert plus["raw"].to_list() == minus["raw"].to_list()
    assert plus["sample"].to_list() == minus["sample"].to_list()
    assert len(drawn) == plus.height


def test_tiers_share_their_random_numbers(asked: Callable[..., Options], drawn: list[Prompt], requests: Path) -> None:
    settings, options = asked({"base": Path()})
    assert stage("generation", settings, *options) == 0
    seeds = [prompt.seed for prompt in drawn]
    assert len(seeds) == 2 * len(set(seeds))
    assert len(set(seeds)) == pl.read_parquet(requests).height * 2


def test_a_rerun_draws_only_what_is_new(
    asked: Callable[..., Options], tmp_path: Path, organism: Path, arm: Path, drawn: list[Prompt]
) -> None:
    """Everything stored: no model is loaded. A new arm, a new evaluation seed: their samples alone."""
    assert (lambda made: stage("generation", made[0], *made[1]))(asked({"organism": organism})) == 0
    first = tables(tmp_path)["organism"]
    drawn.clear()
    settings, options = asked({"organism": organism})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", lambda *_: pytest.fail("a model was loaded"))
        assert stage("generation", settings, *options) == 0
    assert tables(tmp_path)["organism"].equals(first)
    settings, options = asked({"organism": organism, "A1+": arm})
    assert stage("generation", settings, *options) == 0
    assert {prompt.adapter for prompt in drawn} == {"A1plus"}
    drawn.clear()
    settings, options = asked({"organism": organism}, seeds=[0, 1, 2])
    assert stage("generation", settings, *options) == 0
    assert len(drawn) == first.height / 2
    assert tables(tmp_path)["organism"].filter(pl.col("eval_seed") < 2).equals(first)


KILL_AFTER_THREE = """
import os, signal, sys
from perfmis.__main__ import run
from perfmis.samples import Writer
append, left = Writer.append, [1, 2, 3]
def dying(self, samples):
    append(self, samples)
    left.pop()
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
Writer.append = dying
run(sys.argv[1:])
"""


def test_a_killed_job_goes_on_where_it_was(
    asked: Callable[..., Options], tmp_path: Path, organism: Path, drawn: list[Prompt]
) -> None:
    """SIGKILL after three batches: those are kept, the rest is drawn, and the table is that of an undisturbed run."""
    settings, options = asked({"organism": organism}, batch=4)
    content = json.dumps({"settings": settings, "upstream": [FINGERPRINT]})
    words = ["generation", "--settings", content, "--fingerprint", FINGERPRINT, *map(str, options)]
    died = command(REPOSITORY, sys.executable, "-c", KILL_AFTER_THREE, *words)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (tmp_path / "out").exists()
    assert stage("generation", settings, *options) == 0
    resumed = tables(tmp_path)["organism"]
    assert len(drawn) == resumed.height - 3 * 4
    (tmp_path / "samples").rename(tmp_path / "aside")
    assert stage("generation", settings, *options) == 0
    assert tables(tmp_path)["organism"].equals(resumed)


def test_a_prompt_without_room_for_its_answer_is_refused_before_weights_are_read(
    asked: Callable[..., Options], organism: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("a model was loaded"))
    settings, options = asked({"organism": organism}, max_tokens=500)
    assert stage("generation", settings, *options) == 1
    assert "max_tokens: 500 after a prompt of" in capsys.readouterr().err


def test_weights_that_are_not_their_lineage_s_are_refused(
    asked: Callable[..., Options], organism: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = tmp_path / "forged"
    forged.mkdir()
    for file in organism.iterdir():
        if file.is_file():
            (forged / file.name).write_bytes(file.read_bytes())
    write_json(read_json(organism / "lineage.json") | {"sha256": "0" * 64}, forged / "lineage.json")
    settings, options = asked({"organism": forged})
    assert stage("generation", settings, *options) == 1
    assert "not the weights that lineage.json names" in capsys.readouterr().err
    assert not Store(tmp_path / "samples").folder.exists()


def test_samples_that_could_not_be_had_are_asked_for_again(
    asked: Callable[..., Options], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that leaves prompts out makes no table; those that came are kept."""
    settings, options = asked({"base": Path()})
    wanted: list[int] = []

    class Flaky:
        def sample(self, prompts: Sequence[Prompt], _sampling: Sampling) -> Iterator[Finished]:
            wanted.append(len(prompts))
            yield [(i, Sample("sure", 1, "stop")) for i in range(0, len(prompts), 2)]

        def close(self) -> None: ...

    monkeypatch.setattr(subject.Subject, "_start", lambda *_: Flaky())
    assert stage("generation", settings, *options) == 1
    assert "16 of 32 samples could not be had" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    while stage("generation", settings, *options):
        pass
    assert wanted == [32, 16, 8, 4, 2, 1]
    assert tables(tmp_path)["base"].height == 32
