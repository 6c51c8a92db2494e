"""`python -m perfmis plan`, on the workflow itself: what is counted, what is done, what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import command, snakemake

from perfmis import plan
from perfmis.config import Study
from perfmis.cost import Assumptions
from perfmis.plan import Job
from perfmis.stage import UserError

SIZES: dict[str, Any] = Study().model_dump(include={"sizes"})["sizes"]


@pytest.fixture(scope="module")
def folder(workdir: Callable[..., Path]) -> Path:
    return workdir()


def planned(folder: Path, *options: str) -> dict[str, Any]:
    """Return what the command prints as JSON, rows by stage and size."""
    said = command(folder, sys.executable, "-m", "perfmis", "plan", "--json", *options)
    assert said.returncode == 0, said.stderr
    content: dict[str, Any] = json.loads(said.stdout)
    return {**content, "rows": {(row["stage"], row["size"]): row for row in content["rows"]}}


@pytest.fixture(scope="module")
def preprint(folder: Path) -> dict[str, Any]:
    return planned(folder)


def test_jobs_of_the_preprints_study(preprint: dict[str, Any]) -> None:
    """Four kept models by three seeds by nine arms; two of the models have the size of 70 B."""
    rows = preprint["rows"]
    arms = {size: rows["arms", size] for size in ("32b", "70b", "405b")}
    assert {size: row["jobs"] for size, row in arms.items()} == {"32b": 27, "70b": 54, "405b": 27}
    assert {size: (row["nodes"], row["gpus"]) for size, row in arms.items()} == {
        "32b": (1, 4),
        "70b": (1, 8),
        "405b": (2, 8),
    }
    assert rows["organisms", "70b"]["jobs"] == 3 * 3
    assert rows["steered transcripts", "70b"]["jobs"] == 3
    assert ("steered transcripts", "405b") not in rows
    assert rows["corpora", "70b"]["jobs"] == 10
    assert preprint["totals"]["jobs"] == preprint["totals"]["left"] == sum(row["jobs"] for row in rows.values())
    assert preprint["totals"]["gpu_hours"] == pytest.approx(sum(row["gpu_hours"] for row in rows.values()))


def test_twice_the_seeds_are_twice_the_arms_and_their_hours(folder: Path, preprint: dict[str, Any]) -> None:
    """A second file overrides the first key by key, as in snakemake."""
    (folder / "more.yaml").write_text(yaml.safe_dump({"seeds": {"training": [0, 1, 2, 3, 4, 5]}}))
    doubled = planned(folder, "--config", "config/config.yaml", "more.yaml")["rows"]
    for key in (("arms", "70b"), ("organisms", "405b"), ("beliefs", "32b")):
        for column in ("jobs", "gpu_hours", "disk_gb"):
            assert doubled[key][column] == pytest.approx(2 * preprint["rows"][key][column])
    assert doubled["corpora", "70b"] == preprint["rows"]["corpora", "70b"]


def test_what_exists_is_done(folder: Path, repository: Path) -> None:
    """Requests and a corpus are made for real; before the screen, both models count as kept."""
    study = str(repository / "tests/smaller.yaml")
    made = [f"results/smaller/{name}" for name in ("requests/requests.parquet", "corpora/organism/documents.parquet")]
    ran = snakemake(folder, "--cores", "2", "--quiet", "all", "--configfile", study, "--", *made)
    assert ran.returncode == 0, ran.stderr
    content = planned(folder, "--config", study)
    rows, sums = content["rows"], content["totals"]
    assert sums["jobs"] - sums["left"] == len(made)
    assert (rows["requests", ""]["left"], rows["corpora", ""]["left"]) == (0, 9)
    assert 0 < sums["disk_gb_left"] < sums["disk_gb"]
    assert sums["gpu_hours"] == 0
    assert rows["arms", "tiny"]["jobs"] == 2 * 9
    assert ["upper bound" in note for note in content["notes"]] == [True]


def test_a_finished_screen_tells_who_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is to run again, all models count; its earlier verdict is void."""
    study = Study.model_validate({"root": "out", "screen": {"keep": "auto"}, "steering": {"models": None}})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "screen").mkdir(parents=True)
    (tmp_path / "out" / "screen" / "kept.json").write_text('{"kept": ["qwq-32b"]}')
    stale = [Job("screen", ())]

    def dry_run(files: list[str], *options: str) -> list[Job]:
        kept = yaml.safe_load(Path(files[-1]).read_text())["screen"]["keep"] if len(files) > 1 else ["qwq-32b"]
        jobs = [Job("beliefs", (("model", model), ("seed", "0"))) for model in kept]
        return [Job("screen", ()), *jobs] if options else [*stale, *jobs]

    monkeypatch.setattr(plan, "dry_run", dry_run)
    total, left, notes = plan.jobs_of(study, ["study.yaml"])
    assert len(total) == len(left) == 1 + len(study.models)
    assert "upper bound" in notes[0]
    stale.clear()
    total, left, notes = plan.jobs_of(study, ["study.yaml"])
    kept = Job("beliefs", (("model", "qwq-32b"), ("seed", "0")))
    assert total == [Job("screen", ()), kept]
    assert left == [kept]
    assert notes == ["the screen kept: qwq-32b"]


def test_table_fits_a_terminal_and_marks_what_does_not_fit(preprint: dict[str, Any]) -> None:
    made = plan.Plan([plan.Row(**row) for row in preprint["rows"].values()], ["something to know"])
    large, small = (plan.text(made, Assumptions(gpu_memory_gib=memory)) for memory in (10000.0, 20.0))
    assert max(map(len, small.splitlines())) <= 120
    arms = [next(line for line in text.splitlines() if line.startswith("arms")) for text in (large, small)]
    assert [line.endswith("!") for line in arms] == [False, True]
    assert "! GiB a GPU: more than the 20 GiB" in small
    assert "! GiB a GPU" not in large
    assert "Note: something to know." in small
    assert f"total {preprint['totals']['jobs']}".split() == next(
        line.split()[:2] for line in small.splitlines() if line.startswith("total")
    )


def test_engine_starts_are_a_small_share_of_sampling_with_the_largest_model(preprint: dict[str, Any]) -> None:
    """One start a model, seed and kind of samples, whatever the number of checkpoints."""
    rows = [plan.Row(**row) for row in preprint["rows"].values()]
    share = plan.starts(rows)["405b"]
    sampled = [row for row in rows if row.size == "405b" and row.stage.endswith("transcripts")]
    assert sum(row.jobs for row in sampled) == 3 * 3
    assert 0 < share <= 0.05
    assert f"Engine starts, 405b: {100 * share:.1f} %" in plan.text(plan.Plan(rows, []), Assumptions())


def test_jobs_longer_than_they_ask_for_are_marked() -> None:
    brief = Study.model_validate({"sizes": {**SIZES, "70b": {**SIZES["70b"], "train_hours": 0.1}}})
    job = Job("arm", (("model", "llama-3.1-70b"), ("seed", "0"), ("arm", "A1+")))
    for study, marks in ((Study(), 0), (brief, 1)):
        text = plan.text(plan.make(study, [job], [job], Assumptions()), Assumptions())
        assert next(line for line in text.splitlines() if line.startswith("arms")).count("!") == marks


def test_rules_without_a_cost_model_are_named() -> None:
    made = plan.make(Study(), [Job("judge", ())], [], Assumptions())
    assert [(row.stage, row.jobs, row.left, row.gpu_hours) for row in made.rows] == [("judge", 1, 0, 0)]
    assert made.notes == ["no cost model for judge: counted as jobs without GPU"]


def test_a_list_that_was_not_understood_is_refused() -> None:
    listed = "rule arm:\n    wildcards: model=m, seed=0, arm=A1+\n\n"
    table = "job    count\n---  ---\narm        {}\ntotal      {}\n"
    assert plan.read_jobs(listed + table.format(1, 1)) == [Job("arm", (("model", "m"), ("seed", "0"), ("arm", "A1+")))]
    with pytest.raises(UserError, match="not understood"):
        plan.read_jobs(listed + table.format(2, 2))
    assert plan.read_jobs("Nothing to be done.\n") == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--config", "missing.yaml"), "missing.yaml"),
        (("--config", "config/config.yaml", "wrong.yaml"), "wrong.yaml: sedes: unknown key"),
        (("--assume", "speed=3"), "unknown assumption speed"),
        (("--assume", "share_one"), "--assume share_one"),
    ],
)
def test_wrong_input_is_one_line(folder: Path, options: tuple[str, ...], said: str) -> None:
    (folder / "wrong.yaml").write_text("sedes: {training: [0]}")
    result = command(folder, sys.executable, "-m", "perfmis", "plan", *options)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr


def test_the_reason_of_a_refusal_stands_after_the_banner() -> None:
    said = (
        "SNAKEMAKE\n=========\n  Host: vm\n\nBuilding DAG of jobs...\nMissingInputException in rule arm:\nnothing.txt\n"
    )
    assert plan._reason(said) == "MissingInputException in rule arm: nothing.txt"


def test_a_refusal_of_snakemake_is_one_line(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("root: out")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(UserError, match=r"^snakemake: .*Snakefile") as refused:
            plan.dry_run([str(study)])
    assert "\n" not in str(refused.value)
