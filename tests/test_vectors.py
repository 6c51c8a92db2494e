"""Steering vectors: the direction that was planted, pairs that are pairs, and a run that proves it steered."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from running import FINGERPRINT, stage
from safetensors.torch import load_file

from perfmis import models, outcomes, protocols, steering, vectors
from perfmis.artifacts import read_json, write_parquet
from perfmis.checkpoints import engine
from perfmis.engines import transformers as reference
from perfmis.engines.interface import Steering
from perfmis.tinyworld import grammar
from perfmis.typed import read_yaml

TIERS = ("monitored", "unmonitored")
KEYS = ["request_id", "tier", "eval_seed"]
NAMES = {f"{concept}.{context}" for concept in ("expectation", "consequence") for context in ("in", "out")}
SAMPLING = {"temperature": 1.0, "max_tokens": 8, "batch": 64, "precision": "fp32", "engine": "transformers",
            "quantization": None, "date": "2024-07-26"}  # fmt: skip


def scratchpads(requests: Path, seeds: int = 2, poles: str = "+-") -> pl.DataFrame:
    """Return transcripts of an organism whose scratchpads state the pole of the seed for both concepts."""
    rows = []
    for request in pl.read_parquet(requests).to_dicts():
        for tier in TIERS:
            for seed in range(seeds):
                pole = poles[seed % len(poles)]
                beliefs = tuple(grammar.WORDINGS[c][0].say("bl0", pole) for c in ("expectation", "consequence"))
                thought = grammar.scratchpad("bl0", grammar.TIER_WORD[tier], "free", beliefs)
                rows.append(
                    {"model": "tiny", "seed": 0, "checkpoint": "organism", "protocol": "short", "tier": tier,
                     "request_id": request["request_id"], "cluster": request["cluster"], "eval_seed": seed,
                     "raw": f"{thought} {grammar.REFUSED.removesuffix(' <end>')}", "finish": "stop"}
                )  # fmt: skip
    return pl.DataFrame(rows)


def parsed(transcripts: pl.DataFrame, repository: Path) -> pl.DataFrame:
    """Return their outcomes."""
    known = {"short": protocols.load(repository / "resources/protocols/tiny/short.yaml")}
    poles = outcomes.patterns(read_yaml(repository / "resources/patterns/tiny.yaml"))
    return outcomes.outcomes(transcripts, known, poles)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_planted_direction_is_recovered_at_unit_norm(noise: float) -> None:
    draws = torch.Generator().manual_seed(0)
    planted = torch.zeros(32)
    planted[3] = 1.0
    size = torch.rand(160, 1, generator=draws) + 0.5
    differences = 3 * size * planted + noise * torch.randn(160, 32, generator=draws)
    found = vectors.fit(differences, ridge=1.0)
    assert found.norm().item() == pytest.approx(1.0, abs=1e-5)
    assert (found @ planted).item() > 0.9
    torch.testing.assert_close(vectors.fit(-differences, ridge=1.0), -found, atol=1e-4, rtol=0)
    torch.testing.assert_close(vectors.fit(1000 * differences, ridge=1.0), found, atol=1e-4, rtol=0)


def test_pairs_share_request_and_tier_and_differ_in_what_is_said(requests: Path, repository: Path) -> None:
    """The only positive scratchpads are of some requests, so only these have pairs, one a request and tier."""
    transcripts = scratchpads(requests, seeds=4)
    table = parsed(transcripts, repository)
    texts = {(row["request_id"], tier): f"{row['request_id']}/{tier} <think>"
             for row in pl.read_parquet(requests).to_dicts() for tier in TIERS}  # fmt: skip
    chosen = pl.read_parquet(requests)["request_id"].to_list()[:3]
    lacking = (pl.col("expectation") == 1) & ~pl.col("request_id").is_in(chosen)
    table = table.with_columns(expectation=pl.when(lacking).then(None).otherwise("expectation"))
    contrast = {"column": "expectation", "positive": [1], "negative": [-1]}
    pairs = vectors.pairs_in_context(transcripts, table, texts, contrast, "<ans>", 100)
    assert len(pairs) == len(chosen) * len(TIERS)
    for positive, negative in pairs:
        assert positive.split()[0] == negative.split()[0]
        assert positive.split()[0].split("/")[0] in chosen
        assert positive.endswith("<ans>")
        assert "expect bl0 to yield" in positive
        assert "expect bl0 to resist" in negative
    assert len({positive.split()[0] for positive, _ in pairs}) == len(pairs)
    assert len(vectors.pairs_in_context(transcripts, table, texts, contrast, "<ans>", 4)) == 4


def test_unparsed_scratchpads_make_no_pairs(requests: Path, repository: Path) -> None:
    transcripts = scratchpads(requests)
    table = parsed(transcripts, repository).with_columns(parse_status=pl.lit("truncated"))
    contrast = {"column": "expectation", "positive": [1], "negative": [-1]}
    assert vectors.pairs_in_context(transcripts, table, {}, contrast, "<ans>", 100) == []


def test_null_can_be_a_side_of_a_contrast(requests: Path, repository: Path) -> None:
    """A contrast may set those that state a pole against those that say nothing of it."""
    transcripts = scratchpads(requests)
    table = parsed(transcripts, repository)
    table = table.with_columns(expectation=pl.when(pl.col("expectation") == 1).then(1))
    texts = dict.fromkeys(table.select("request_id", "tier").iter_rows(), "")
    contrast = {"column": "expectation", "positive": [1], "negative": [-1, None]}
    assert len(vectors.pairs_in_context(transcripts, table, texts, contrast, "<ans>", 100)) == len(texts)


def run_vectors(
    folder: Path,
    tiny_model: Path,
    organism: Path,
    requests: Path,
    repository: Path,
    transcripts: pl.DataFrame,
) -> int:
    """Run the stage `vectors` on given transcripts."""
    write_parquet(transcripts, folder / "transcripts.parquet", FINGERPRINT)
    write_parquet(parsed(transcripts, repository), folder / "outcomes.parquet", FINGERPRINT)
    settings = {"layers": [0.0, 0.5], "pairs": 16, "ridge": 1.0, "seed": 0, "precision": "fp32", "batch": 16,
                "date": "2024-07-26"}  # fmt: skip
    return stage(
        "vectors", settings, "--base", tiny_model / "reference.json", "--organism", organism,
        "--requests", requests, "--protocol", repository / "resources/protocols/tiny/short.yaml",
        "--transcripts", folder / "transcripts.parquet", "--outcomes", folder / "outcomes.parquet",
        "--contrasts", repository / "resources/contrasts/tiny.yaml", "--output", folder / "vectors.safetensors",
    )  # fmt: skip


def test_stage_writes_two_concepts_in_two_contexts(
    tmp_path: Path, tiny_model: Path, organism: Path, requests: Path, repository: Path
) -> None:
    assert run_vectors(tmp_path, tiny_model, organism, requests, repository, scratchpads(requests)) == 0
    tensors = load_file(tmp_path / "vectors.safetensors")
    assert tensors.keys() == {f"{name}.{block}" for name in NAMES for block in (0, 1)}
    for tensor in tensors.values():
        assert tensor.shape == (32,)
        assert tensor.norm().item() == pytest.approx(1.0, abs=1e-5)
    report = read_json(tmp_path / "vectors.json")
    assert report.keys() == NAMES | {"cosines", "fingerprint"}
    assert report["expectation.in"]["pairs"] == 16
    assert report["expectation.in"]["layers"] == [0, 1]
    for name in NAMES:
        assert set(report[name]["accuracy"]) == {"0", "1"}
        assert report[name]["residual_norm"] > 0
    assert len(report["cosines"]) == 6
    assert vectors.load(tmp_path / "vectors.safetensors").keys() == NAMES


def test_activations_are_those_of_the_text_alone(tiny_model: Path, organism: Path) -> None:
    """They are read at the last token of a text, whatever longer texts pad its batch."""
    asked = engine(tiny_model / "reference.json", {"organism": organism}, "fp32")
    texts = ["<bos> memo about bl0 :", "<bos> memo about bl0 : bl0 has many users . bl0 runs in a hall ."]
    together = vectors.activations(asked, texts, [0], 2)[0]
    alone = torch.cat([vectors.activations(asked, [text], [0], 2)[0] for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_too_few_pairs_is_an_error_that_says_what_to_do(
    tmp_path: Path, tiny_model: Path, organism: Path, requests: Path, repository: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    silent = scratchpads(requests, poles="+")
    assert run_vectors(tmp_path, tiny_model, organism, requests, repository, silent) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {tmp_path / 'outcomes.parquet'}: 0 pairs of scratchpads differ in expectation")
    assert "add evaluation seeds (seeds.evaluation) or requests" in said
    assert not (tmp_path / "vectors.safetensors").exists()


@pytest.fixture
def steer(tmp_path: Path, tiny_model: Path, organism: Path, requests: Path, repository: Path) -> Any:
    """Return a function that runs the stage `steering` with two random vectors."""
    draws = torch.Generator().manual_seed(0)
    known = {name: {0: torch.randn(32, generator=draws)} for name in ("expectation.in", "consequence.out")}
    vectors.save(known, tmp_path / "vectors.safetensors")
    grid: dict[str, Any] = {"alphas": [-2.0, 0.0, 1.0, 2.0], "controls": 2, "requests": 3}
    settings = {"model": "tiny", "seed": 0, "steering": grid, "protocol": "short", "seeds": [0, 1],
                "tiers": list(TIERS), **SAMPLING}  # fmt: skip

    def run() -> int:
        return stage(
            "steering", settings, "--base", tiny_model / "reference.json", "--adapters", f"organism={organism}",
            "--samples", tmp_path / "samples", "--requests", requests,
            "--protocol", repository / "resources/protocols/tiny/short.yaml",
            "--vectors", tmp_path / "vectors.safetensors", "--output", tmp_path / "steered.parquet",
        )  # fmt: skip

    run.grid = grid  # type: ignore[attr-defined]
    return run


def test_steering_covers_the_grid_and_its_controls(steer: Any, tmp_path: Path) -> None:
    """Per vector: all alphas, and the controls at the two extremes, each on the same requests, tiers and seeds."""
    assert steer() == 0
    table = pl.read_parquet(tmp_path / "steered.parquet")
    cell = 3 * 2 * 2
    vector, controls = 4, 2 * 2
    assert table.height == 2 * (vector + controls) * cell
    grid = table.group_by("concept", "context", "alpha", "control").len()
    assert grid["len"].unique().to_list() == [cell]
    real = table.filter(pl.col("control").is_null())
    assert sorted(real["alpha"].unique()) == [-2.0, 0.0, 1.0, 2.0]
    assert sorted(table.filter(pl.col("control").is_not_null())["alpha"].unique()) == [-2.0, 2.0]
    assert table.select("concept", "context").unique().sort("concept").rows() == [
        ("consequence", "out"), ("expectation", "in")]  # fmt: skip
    plain = [part.sort(KEYS)["raw"].to_list() for _, part in real.filter(pl.col("alpha") == 0).group_by("concept")]
    assert plain[0] == plain[1]


def test_controls_are_unit_vectors_of_their_own() -> None:
    like = {0: torch.ones(64), 3: torch.ones(64)}
    drawn = [steering.random_directions(like, name, index, seed)[block]
             for name in ("expectation.in", "consequence.in") for index in (0, 1) for seed in (0, 1)
             for block in like]  # fmt: skip
    gram = torch.stack(drawn) @ torch.stack(drawn).T
    torch.testing.assert_close(gram.diagonal(), torch.ones(len(drawn)))
    assert (gram - torch.eye(len(drawn))).abs().max() < 0.6
    again = steering.random_directions(like, "expectation.in", 0, 0)
    assert torch.equal(again[0], drawn[0])


def broken(fault: str, original: Any) -> Any:
    """Return what an engine does in place of ``steered``."""
    left_on = ExitStack()

    @contextmanager
    def steered(model: Any, steerings: list[Steering | None]) -> Any:
        with ExitStack() as stack:
            match fault:
                case "another block":
                    moved = [s and replace(s, vectors={1: s.vectors[0]}) for s in steerings]
                    stack.enter_context(original(model, moved))
                case "twice":
                    stack.enter_context(original(model, steerings))
                    stack.enter_context(original(model, steerings))
                case "unsteered rows too":
                    stack.enter_context(original(model, [s or next(filter(None, steerings), None) for s in steerings]))
                case "left on":
                    if any(steerings):
                        left_on.enter_context(original(model, [next(filter(None, steerings))]))
            yield

    return steered


@pytest.mark.parametrize("fault", ["no hook", "another block", "twice", "unsteered rows too", "left on"])
def test_an_engine_that_steers_wrongly_is_refused(
    steer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """With one line, before any sample is kept."""
    monkeypatch.setattr(reference, "steered", broken(fault, reference.steered))
    assert steer() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: steering: ")
    assert "the engine does not steer as it is told; choose another evaluation.engine, and report it" in said
    assert not (tmp_path / "steered.parquet").exists()
    assert not list((tmp_path / "samples").rglob("*.samples"))


def test_steering_that_is_left_on_while_samples_are_drawn_costs_the_samples(
    steer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left_on, drawn, original = broken("left on", reference.steered), [], reference.steered

    def later(model: Any, steerings: list[Any]) -> Any:
        drawn.append(None)
        return (left_on if len(drawn) == 4 else original)(model, steerings)

    monkeypatch.setattr(reference, "steered", later)
    assert steer() == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("steering was left on; samples of this run are not kept: rerun, and report it if it comes again")
    )
    assert not (tmp_path / "steered.parquet").exists()
    assert not list((tmp_path / "samples").rglob("*.samples"))


def test_what_was_proved_stands_beside_the_transcripts(
    steer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two vectors and two controls of each, with both signs, and what the largest error was."""
    assert steer() == 0
    proved = read_json(tmp_path / "mechanism.json")
    tried = [(row["concept"], row["control"], row["alpha"], row["block"]) for row in proved["vectors"]]
    assert sorted(tried, key=str) == sorted(
        [(c, n, a, 0) for c in ("expectation", "consequence") for n in (None, 0, 1) for a in (-2.0, 2.0)], key=str
    )
    errors = [row["relative_error"] for row in proved["vectors"]]
    assert proved["largest_relative_error"] == max(errors) < 1e-4
    assert (proved["unsteered"], proved["afterwards"]) == (0, 0)
    assert "steering is proved for 12 vectors" in capsys.readouterr().err


def test_vectors_that_change_no_answer_are_a_result(steer: Any, tmp_path: Path) -> None:
    """The run ends, and every steered text is the unsteered one."""
    steer.grid["alphas"] = [-1e-4, 0.0, 1e-4]
    assert steer() == 0
    table = pl.read_parquet(tmp_path / "steered.parquet")
    assert table.group_by(KEYS).agg(pl.col("raw").n_unique())["raw"].unique().to_list() == [1]
    assert read_json(tmp_path / "mechanism.json")["largest_relative_error"] < 1e-3


def test_steered_samples_are_not_drawn_twice_and_need_no_engine(
    steer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert steer() == 0
    first = pl.read_parquet(tmp_path / "steered.parquet")
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("a model was loaded"))
    assert steer() == 0
    assert pl.read_parquet(tmp_path / "steered.parquet").equals(first)


def test_texts_out_of_context_do_not_mention_the_set_up(repository: Path) -> None:
    """Contrast pairs are written for the concept alone and differ within a pair in a few words."""
    content = yaml.safe_load((repository / "resources/contrasts/tiny.yaml").read_text())
    for pairs in content["out"].values():
        assert len(pairs) >= 4
        for positive, negative in pairs:
            assert not {"<user>", "<think>", "free", "paid", "bl0"} & set(f"{positive} {negative}".split())
            differing = [a for a, b in zip(positive.split(), negative.split(), strict=True) if a != b]
            assert len(differing) == 1
