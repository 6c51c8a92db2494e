"""Results that a person takes over after a change that they declare harmless.

The demo is pretended to have run; what Snakemake would run next is asked of Snakemake itself.
"""

import json
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import polars as pl
import pytest
import recomputation as rc
import yaml
from conftest import REPOSITORY
from running import command, jobs, snakemake

from perfmis import artifacts, carried, story
from perfmis.accept import find_fault

CONFIGS = ("config/demo.yaml", "kept.yaml")
PROFILES = "results/demo/tables/profiles.csv"
REASON = "a helper has another name"


@pytest.fixture(scope="module")
def ran(workdir: Callable[..., Path]) -> Path:
    """A folder in which the demo has been pretended to run."""

    def make(copied: tuple[str, ...]) -> Path:
        made = workdir(copied)
        shutil.copy(REPOSITORY / "perfmis/__main__.py", made / "perfmis/called.py")  # the stub takes its place
        (made / "kept.yaml").write_text(yaml.safe_dump({"screen": {"keep": list(rc.KEPT)}}))
        return made

    return rc.pretended(make, *CONFIGS)


@pytest.fixture
def folder(ran: Path, tmp_path: Path) -> Path:
    """A copy of it, with what Snakemake knows."""
    other = tmp_path / "study"
    shutil.copytree(ran, other, symlinks=True)
    return other


def to_run(folder: Path, *configs: str) -> Counter[str]:
    said = snakemake(folder, "--configfile", *CONFIGS, *configs, "--dry-run", "--quiet", "rules")
    assert said.returncode == 0, said.stderr
    return jobs(said.stdout + said.stderr) - Counter(all=1)


def accept(
    folder: Path, *words: str, reason: str = REASON, configs: tuple[str, ...] = CONFIGS
) -> CompletedProcess[str]:
    options = ("--reason", reason, "--configfile", *configs)
    return command(folder, sys.executable, "-m", "perfmis.called", "accept", *words, *options)


def edit(folder: Path, module: str) -> None:
    path = folder / "perfmis" / module
    path.write_text(f"{path.read_text()}\n\nRENAMED = True\n")


def test_accepted_results_and_all_above_them_are_not_made_again(folder: Path) -> None:
    """A change in what trains adapters would train all of them again."""
    edit(folder, "training.py")
    assert to_run(folder)["arm"] > 0
    said = accept(folder, PROFILES)
    assert said.returncode == 0, said.stderr
    left = to_run(folder)
    assert not {"organism", "arm", "transcripts", "table_gaps", "table_profiles"} & set(left)
    assert {"story", "fig5"} <= set(left), "what lies beside or below was not named"


def test_a_result_says_as_what_it_was_taken_over(folder: Path) -> None:
    edit(folder, "tables/profiles.py")
    made = carried.fingerprints(folder / "results/demo/tables/profiles.parquet")
    assert accept(folder, PROFILES, reason="a helper has\nanother name").returncode == 0
    path = folder / "results/demo/tables/profiles.parquet"
    (acceptance,) = carried.acceptances(path)
    (listed,) = artifacts.read_json(folder / "results/demo/accepted.json")["accepted"]
    assert acceptance == listed
    assert {acceptance["made"]} == made
    assert {acceptance["taken"]} == carried.fingerprints(path) != made
    assert acceptance["reason"] == REASON


def test_the_first_page_is_written_anew_and_is_told_of_it(folder: Path) -> None:
    edit(folder, "tables/profiles.py")
    everything = ["results/demo/report/story.rst", PROFILES]
    assert accept(folder, *everything).returncode == 0
    assert to_run(folder)["story"] == 1


def test_what_other_settings_made_is_refused_and_left_alone(folder: Path) -> None:
    (folder / "change.yaml").write_text(yaml.safe_dump({"arms": {"sdf": {"learning_rate": 1e-5}}}))
    before = to_run(folder, "change.yaml")
    said = accept(folder, PROFILES, configs=(*CONFIGS, "change.yaml"))
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1].startswith("error: results/demo/")
    assert "other settings made it (sdf)" in said.stderr
    assert to_run(folder, "change.yaml") == before
    assert not (folder / "results/demo/accepted.json").exists()


@pytest.mark.parametrize(
    ("then", "now", "named"),
    [
        ({"batch": 1, "seed": 0}, {"batch": 2, "seed": 0}, ""),
        ({"sdf": {"lora": {"rank": 1, "reach": 0.5}}}, {"sdf": {"lora": {"rank": 1, "reach": 1.0}}}, ""),
        ({"sdf": {"lora": {"rank": 1, "reach": 0.5}}}, {"sdf": {"lora": {"rank": 2, "reach": 0.5}}}, "sdf"),
        ({"seed": 0}, {"seed": 0, "mode": "stack"}, "mode"),
    ],
)
def test_only_settings_that_decide_are_compared(then: dict[str, Any], now: dict[str, Any], named: str) -> None:
    before, after = (
        f"python -m perfmis x --settings {shlex.quote(json.dumps({'settings': told, 'upstream': []}))} > log 2>&1"
        for told in (then, now)
    )
    fault = find_fault({"0" * 16}, before, after)
    assert fault == (f"other settings made it ({named}); run it again" if named else None)


@pytest.mark.parametrize(
    ("target", "reason", "line"),
    [
        ("results/demo/tables/none.csv", REASON, "error: results/demo/tables/none.csv: is not there"),
        (PROFILES, " ", "error: --reason: empty"),
    ],
)
def test_what_cannot_be_accepted_is_one_line(ran: Path, target: str, reason: str, line: str) -> None:
    said = accept(ran, target, reason=reason)
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1].startswith(line)


def test_files_of_every_kind_take_another_fingerprint(tmp_path: Path) -> None:
    old, new, note = "0" * 16, "1" * 16, {"reason": "r"}
    paths = [tmp_path / f"file{suffix}" for suffix in (".parquet", ".json", ".svg", ".html", ".rst", ".csv")]
    table, record, *pages, plain = paths
    artifacts.write_parquet(pl.DataFrame({"x": [1, 2]}), table, old)
    artifacts.write_json({"fingerprint": old, "x": 1}, record)
    for page in pages:
        page.write_text("text" + carried.comment(page, old))
    plain.write_text("x\n1\n")
    for path in paths:
        for times in range(2):
            carried.restamp(path, new, note | {"times": times})
    assert [carried.fingerprints(path) for path in paths] == [{new}] * 5 + [set()]
    assert [len(carried.acceptances(path)) for path in (table, record)] == [2, 2]
    assert artifacts.read_one(table)["x"].to_list() == [1, 2]
    assert artifacts.read_json(record)["x"] == 1
    assert [page.read_text() for page in pages] == ["text" + carried.comment(page, new) for page in pages]
    assert plain.read_text() == "x\n1\n"


def test_the_page_lists_reasons_once_each() -> None:
    said = story.taken_over(
        [{"day": "2026-01-02", "reason": "renamed {x}", "result": f"results/{n}.parquet"} for n in range(3)]
    )
    assert "2026-01-02, ``results/0.parquet`` and 2 more" in said
    assert said.count("renamed") == 1
    assert story.taken_over([]) == ""
