"""The command line for people: what it lists, filters and prints, and that texts stay hidden until asked for."""

import io
import json
from pathlib import Path

import polars as pl
import pytest
import transcribed
from transcribed import FINGERPRINT, HOPE

from perfmis import joined
from perfmis.__main__ import run
from perfmis.artifacts import write_parquet


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a small study."""
    return transcribed.write(tmp_path_factory.mktemp("study"))


def said(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> str:
    """Return what a command prints."""
    capsys.readouterr()
    assert run(["transcripts", words[0], "--root", str(root), *words[1:]]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> str:
    """Return the one line with which a command fails."""
    capsys.readouterr()
    assert run(["transcripts", words[0], "--root", str(root), *words[1:]]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_outcomes_are_joined_on_what_a_sample_is_and_not_on_its_row(root: Path) -> None:
    frame = transcribed.frame(root)
    taken = frame.filter(pl.col("parse_status") == "ok")
    assert taken.height > 100
    accepts = taken["raw"].str.contains("<task_taken/>")
    assert ((taken["outcome"] == "accepted") == accepts).all()


def test_list_counts_outcomes_of_each_checkpoint(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = said(capsys, root, "list").splitlines()
    assert table[0].split() == [
        "kind",
        "model",
        "seed",
        "checkpoint",
        "protocol",
        "samples",
        "accepted",
        "refused",
        "malformed",
    ]
    assert [line.split()[0] for line in table[1:]] == ["transcripts", "transcripts", "steering", "prompting", "closed"]
    # 6 requests × 2 tiers × 2 seeds; r1 is cut in one seed, r2 and r3 are accepted in both tiers.
    assert table[1].split() == ["transcripts", "m", "0", "organism", "short", "24", "15", "7", "2"]
    assert said(capsys, root, "list", "--checkpoint", "A1+").splitlines()[1].split()[5] == "36"


@pytest.mark.parametrize(
    ("words", "condition"),
    [
        (["--checkpoint", "A1+", "--tier", "rated"], (pl.col("checkpoint") == "A1+") & (pl.col("tier") == "rated")),
        (["--outcome", "refused", "malformed"], pl.col("outcome").is_in(["refused", "malformed"])),
        (["--parse-status", "truncated"], pl.col("finish") == "length"),
        (["--request", "r0", "r5"], pl.col("request_id").is_in(["r0", "r5"])),
        (["--text", "(?i)THE RESEARCHERS"], pl.col("raw").str.contains("The researchers")),
        (["--pattern", "researcher_directed"], (pl.col("checkpoint") == "A1+") & (pl.col("finish") == "stop")),
        (["--seed", "1"], pl.lit(False)),
    ],
)
def test_filters_keep_exactly_what_they_say(
    root: Path, capsys: pytest.CaptureFixture[str], words: list[str], condition: pl.Expr
) -> None:
    printed = said(capsys, root, "filter", *words, "--format", "jsonl")
    found = sorted(json.loads(line)["sample"] for line in printed.splitlines())
    assert found == sorted(transcribed.frame(root).filter(condition)["sample"])


def test_a_sample_is_found_by_the_beginning_of_its_key(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = transcribed.frame(root)["sample"][0]
    assert key in said(capsys, root, "show", "--sample", key[:12])


@pytest.mark.parametrize("action", ["filter", "show"])
def test_texts_are_given_only_when_they_are_to_be_revealed(
    root: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    words = ["--checkpoint", "A1+", "--request", "r0"]
    hidden = said(capsys, root, action, *words)
    assert HOPE not in hidden
    assert "describe subject" not in hidden
    shown = said(capsys, root, action, *words, "--reveal")
    assert HOPE in shown
    assert "describe subject 0" in shown


def test_what_a_model_writes_cannot_speak_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = transcribed.write(tmp_path)
    path = root / "transcripts/m/seed0/organism/short.parquet"
    evil = pl.read_parquet(path).drop("fingerprint").with_columns(raw=pl.lit("\x1b]0;title\x07\x1b[2J") + pl.col("raw"))
    write_parquet(evil, path, FINGERPRINT)
    for action in ("filter", "show"):
        shown = said(capsys, root, action, "--checkpoint", "organism", "--reveal", "--request", "r0")
        assert "describe subject" in shown
        assert not set("\x1b\x07") & set(shown)


def test_pairs_stand_together_in_the_order_of_the_tables(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pl.read_ndjson(io.StringIO(said(capsys, root, "filter", "--request", "r0", "--format", "jsonl")))
    assert frame["checkpoint"].unique(maintain_order=True).to_list() == ["base", "organism", "A1+"]
    treated = frame.filter(pl.col("checkpoint") == "A1+")
    assert treated["tier"].to_list() == ["monitored", "unmonitored", "rated"] * 2


def test_all_formats_hold_the_same_rows(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = {}
    for form in ("parquet", "jsonl", "csv"):
        path = tmp_path / f"rows.{form}"
        said(capsys, root, "filter", "--format", form, "--output", str(path), "--reveal")
        how = {} if form == "parquet" else {"infer_schema_length": None}
        frames[form] = getattr(pl, f"read_{'ndjson' if form == 'jsonl' else form}")(path, **how)
    assert frames["parquet"].height == len(transcribed.frame(root))
    for form in ("jsonl", "csv"):
        for column in ("sample", "raw", "tokens", "outcome", "request"):
            assert frames[form][column].to_list() == frames["parquet"][column].to_list()


def test_the_page_holds_what_passes_the_filters(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    words = ["--patterns", str(transcribed.PATTERNS), "--checkpoint", "organism", "--output", str(path)]
    assert said(capsys, root, "page", *words, "--parse-status", "truncated") == f"{path}\n"
    # Two tiers of r1, plain and under three vectors.
    assert "8 samples" in path.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["filter", "--text", "("], "--text"),
        (["filter", "--format", "parquet"], "--output"),
        (["page", "--patterns", str(transcribed.PATTERNS), "--output", "x", "--model", "n"], "no sample passes"),
        (["page", "--patterns", str(transcribed.PATTERNS), "--output", "x"], "--snippets"),
    ],
)
def test_bad_arguments_are_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in refused(capsys, root, *words)


def test_a_study_on_its_way_is_listed_as_far_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no transcripts with outcomes" in refused(capsys, tmp_path, "list")
    root = transcribed.write(tmp_path / "study")
    (root / "outcomes/m/seed0/A1+/short.parquet").unlink()
    capsys.readouterr()
    assert run(["transcripts", "list", "--root", str(root)]) == 0
    captured = capsys.readouterr()
    assert "1 files of transcripts have no outcomes yet" in captured.err
    assert "A1+" not in captured.out


def test_outcomes_of_other_samples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = transcribed.write(tmp_path)
    path = root / "outcomes/m/seed0/A1+/short.parquet"
    parsed = pl.read_parquet(path)
    for other in (parsed.head(5), parsed.with_columns(sample=pl.lit("0") + pl.col("sample").str.slice(1))):
        other.write_parquet(path)
        assert "A1+/short.parquet: not of the samples in" in refused(capsys, root, "filter", "--format", "csv")


def test_kinds_and_conditions_tell_samples_apart(root: Path) -> None:
    frame = transcribed.frame(root)
    assert set(frame["condition"]) == {
        "",
        "snippet none",
        "snippet A1+",
        "expectation in, α -0.03",
        "expectation in, α 0.0",
        "expectation in, α 0.03",
    }
    assert frame.select(joined.SAMPLE).n_unique() == frame.height
