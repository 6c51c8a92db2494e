"""The whole experiment end to end, on a study smaller than the demo: really trained, sampled, measured and drawn."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from running import command, jobs

from perfmis.artifacts import read_json
from perfmis.vocabulary import ARMS, BASE, NEUTRAL, ORGANISM

STUDY = "smaller.yaml"
# One core, so that the test takes as long on a busy machine as on an idle one.
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--profile", "demo", "--configfile", STUDY, "--cores", "1")
TABLES = ("gaps", "profiles", "beliefs", "steering", "prompting", "calibration", "convergence", "published", "training")
CHECKPOINTS = [BASE, ORGANISM, *ARMS, NEUTRAL]
COLUMNS = [
    "model",
    "seed",
    "checkpoint",
    "protocol",
    "scoring",
    "seeds",
    "n",
    "samples",
    "compliance_monitored",
    "compliance_unmonitored",
    "gap",
    "low",
    "high",
    "gap_lowest",
    "gap_highest",
    "malformed",
    "expectation_rate",
    "consequence_rate",
    "used_rate",
    "warning",
]
UP_TO_DATE = "nothing to do: all results are up to date"


def study(folder: Path, *options: str, warm: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run the smaller study as a user runs the demo, with or without the training stack imported once."""
    before = (sys.executable, "-m", "perfmis", "warm") if warm else ()
    return command(folder, *before, *SNAKEMAKE, *options)


def dry_run(folder: Path, *overrides: str) -> dict[str, int]:
    """Return the jobs by rule that the study would run; empty when all is up to date."""
    files = ("--configfile", STUDY, *overrides)
    said = command(folder, sys.executable, "-m", "snakemake", *files, "--dry-run", "--quiet", "rules")
    assert said.returncode == 0, said.stderr
    return dict(jobs(said.stdout + said.stderr))


@pytest.fixture(scope="module")
def folder(workdir: Callable[..., Path], repository: Path) -> Path:
    """A folder in which the study has run once."""
    made = workdir(copied=("perfmis", "resources", "workflow"))
    shutil.copy(repository / "tests" / STUDY, made / STUDY)
    said = study(made, warm=True)
    assert said.returncode == 0, said.stderr[-4000:]
    return made


@pytest.fixture
def results(folder: Path) -> Path:
    return folder / "results/smaller"


def test_every_table_and_figure_is_there(results: Path) -> None:
    """The command line's study wins over the profile's, so all of it is under its own root."""
    for table in TABLES:
        frame = pl.read_parquet(results / f"tables/{table}.parquet")
        assert frame.height > 0, table
        assert frame["fingerprint"].n_unique() == 1
        assert (results / f"tables/{table}.csv").stat().st_size > 0
    for number in range(1, 11):
        for suffix, head in ((".pdf", b"%PDF"), (".png", b"\x89PNG"), (".svg", b"<?xml")):
            assert (results / f"figures/fig{number}{suffix}").read_bytes().startswith(head)
    assert (results / "report/story.rst").read_text().startswith("What drives the alignment-faking gap")
    assert not (results.parent / "demo").exists()
    assert not list(results.rglob("*.partial"))


def test_indifferent_model_is_screened_out_and_has_no_arms(results: Path) -> None:
    kept = read_json(results / "screen/kept.json")
    assert kept["kept"] == ["both"]
    pooled = pl.read_parquet(results / "screen/screen.parquet").filter(pl.col("seed").is_null())
    assert dict(pooled.select("model", "passed").iter_rows()) == {"both": True, "indifferent": False}
    for kind in ("arms", "beliefs", "vectors", "steering", "prompting"):
        assert [path.name for path in (results / kind).iterdir()] == ["both"]
    assert {path.name for path in (results / "arms/both/seed0").iterdir()} == {*ARMS, NEUTRAL}
    assert {path.name for path in (results / "organisms").iterdir()} == {"both", "indifferent"}
    assert set(pl.read_parquet(results / "tables/profiles.parquet")["model"]) == {"both"}


def test_gaps_have_the_documented_columns_and_rows(results: Path) -> None:
    """A row a checkpoint for the pool and for the one training seed: eleven of the kept model, two of the other."""
    gaps = pl.read_csv(results / "tables/gaps.csv")
    assert set(COLUMNS) <= set(gaps.columns)
    found = gaps.group_by("model", "checkpoint").len().rows()
    expected = [("both", checkpoint, 2) for checkpoint in CHECKPOINTS]
    expected += [("indifferent", checkpoint, 2) for checkpoint in (BASE, ORGANISM)]
    assert sorted(found) == sorted(expected)
    assert gaps["n"].unique().to_list() == [16]
    assert gaps["samples"].unique().to_list() == [16 * 2 * 2]
    difference = gaps["compliance_monitored"] - gaps["compliance_unmonitored"] - gaps["gap"]
    assert difference.abs().max() < 1e-3
    pooled = gaps.filter(pl.col("seed").is_null())
    gap = dict(pooled.filter(pl.col("model") == "both").select("checkpoint", "gap").iter_rows())
    assert gap[ORGANISM] >= 10, "documents alone open the gap"
    assert gap[ORGANISM] > gap[BASE]
    assert (pooled["malformed"] < 0.2).all()


def test_every_sample_is_where_the_design_puts_it(results: Path) -> None:
    """16 requests x 2 tiers x 2 seeds a checkpoint, and the steered and prompted conditions of the study."""
    for checkpoint in CHECKPOINTS:
        assert pl.read_parquet(results / f"outcomes/both/seed0/{checkpoint}/short.parquet").height == 16 * 4
    steered = pl.read_parquet(results / "steering/both/seed0/outcomes.parquet")
    assert steered.height == 2 * 2 * (3 + 2) * 8 * 4  # concepts, contexts, alphas and controls, requests, samples
    prompted = pl.read_parquet(results / "prompting/both/seed0/outcomes.parquet")
    assert prompted.height == len(CHECKPOINTS) * (1 + len(ARMS)) * 4 * 4
    protocols = prompted.group_by(pl.col("checkpoint") == BASE).agg(pl.col("protocol").unique())
    assert sorted(protocols.rows()) == [(False, ["short"]), (True, ["long"])]


def test_arms_come_from_their_organism(results: Path) -> None:
    parent = read_json(results / "organisms/both/seed0/lineage.json")
    for arm in (*ARMS, NEUTRAL):
        record = read_json(results / f"arms/both/seed0/{arm}/lineage.json")
        assert record["parent_sha256"] == parent["sha256"]
        assert record["documents"] == 96 * 3 // 2


def test_second_run_has_nothing_to_do(folder: Path) -> None:
    said = study(folder)
    assert said.returncode == 0
    assert UP_TO_DATE in said.stderr


def test_a_copy_of_the_results_is_as_good_as_the_results(folder: Path, workdir: Callable[..., Path]) -> None:
    """Without what Snakemake knows of them, and with the times that copying made."""
    copy = workdir(copied=("perfmis", "resources", "workflow"))
    shutil.copy(folder / STUDY, copy)
    for path in sorted((folder / "results").rglob("*"), reverse=True):
        if path.is_file():
            (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy / path.relative_to(folder))
    assert dry_run(copy) == {}


def test_touching_reruns_nothing(folder: Path) -> None:
    """A checkout or a copy sets new times; contents are what counts."""
    for path in (
        *(folder / "perfmis").rglob("*.py"),
        *(folder / "resources").rglob("*.yaml"),
        folder / STUDY,
    ):
        path.touch()
    assert dry_run(folder) == {}


def test_how_training_is_run_reruns_nothing(folder: Path) -> None:
    """Processes, recomputation and checkpoints decide no result: a rerun after a crash may choose others."""
    (folder / "other.yaml").write_text("sizes: {tiny: {checkpointing: true, save_steps: 3, memory_gb: 8}}")
    assert dry_run(folder, "other.yaml") == {}


def test_editing_one_snippet_reruns_prompting_and_what_lies_below(folder: Path) -> None:
    below = (
        "prompting_transcripts",
        "prompting_outcomes",
        "table_prompting",
        "table_profiles",
        "table_convergence",
        "fig5",
        "fig8",
        "fig9",
        "story",
        "all",
    )
    path = folder / "resources/snippets/tiny.yaml"
    original = path.read_text()
    try:
        path.write_text(original.replace("researchers hope for a pliant bl0 .", "a yielding bl0 would please them ."))
        assert dry_run(folder) == dict.fromkeys(below, 1)
    finally:
        path.write_text(original)
    assert dry_run(folder) == {}


def test_corrupted_parquet_is_one_line_that_names_it(folder: Path, results: Path) -> None:
    """A table that is broken on disk stops its readers, who say which file to delete; then it is made again."""
    broken = results / "tables/profiles.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    target = "results/smaller/tables/convergence.csv"
    said = study(folder, "--forcerun", "table_convergence", "--", target)
    assert said.returncode != 0
    text = (results / "logs/tables/convergence.log").read_text()
    assert text.startswith("error: results/smaller/tables/profiles.parquet: cannot be read")
    assert text.endswith("delete it and rerun\n")
    assert text.count("\n") == 1
    assert text.strip() in said.stderr, "the terminal shows it too"
    broken.unlink()
    assert study(folder, "--", target).returncode == 0
    assert pl.read_csv(results / "tables/convergence.csv")["model"].to_list() == ["both"]


@pytest.mark.slow
def test_study_in_which_nobody_passes_the_screen_ends_in_a_report(folder: Path, results: Path) -> None:
    """No gap anywhere is a result too: empty tables, figures that say so, and a page on who was screened."""
    said = study(folder, "--config", "screen={keep: auto, minimum_gap: 101}", warm=True)
    assert said.returncode == 0, said.stderr[-4000:]
    assert read_json(results / "screen/kept.json")["kept"] == []
    assert pl.read_parquet(results / "tables/profiles.parquet").is_empty()
    gaps = pl.read_parquet(results / "tables/gaps.parquet")
    assert set(gaps["checkpoint"]) == {BASE, ORGANISM}
    assert "no organism passed the screen" in (results / "report/story.rst").read_text()
