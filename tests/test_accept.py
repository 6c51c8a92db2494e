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

import polars as pl
import pytest
import recomputation as rc
import yaml
from conftest import REPOSITORY
from running import command, jobs, snakemake

from perfmis import artifacts, carried, protocols, story
from perfmis.accept import Acceptance, History, find_fault, read_command

CONFIGS = ("config/demo.yaml",)
PROFILES = "results/demo/tables/profiles.csv"
REASON = "a helper has another name"


@pytest.fixture(scope="module")
def ran(workdir: Callable[..., Path]) -> Path:
    """A folder in which the demo has been pretended to run."""

    folder = rc.pretended(workdir, *CONFIGS)
    shutil.copy(REPOSITORY / "perfmis/__main__.py", folder / "perfmis/called.py")  # the stub takes its place
    return folder


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
    assert to_run(folder)["organism"] > 0
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


def test_what_was_made_from_other_results_than_there_are_now_is_refused(folder: Path) -> None:
    """The settings of what is read from the organisms tell nothing of how these were trained."""
    (folder / "change.yaml").write_text(yaml.safe_dump({"organisms": {"sdf": {"learning_rate": 1e-5}}}))
    changed = (*CONFIGS, "change.yaml")
    organisms = [f"results/demo/organisms/{model}/seed0/lineage.json" for model in [*rc.KEPT, "indifferent"]]
    ran = rc.run(folder, *changed, options=["--", *organisms])
    assert ran.returncode == 0, ran.stderr
    said = accept(folder, PROFILES, configs=changed)
    assert said.returncode == 1
    assert "it was made from other results than there are now" in said.stderr
    assert to_run(folder, "change.yaml")["screen_transcripts"] > 0


def test_what_was_interrupted_goes_on(folder: Path) -> None:
    """A job of whose files some have been taken over is finished by the next call."""
    edit(folder, "tables/profiles.py")
    shutil.copytree(folder / ".snakemake", folder / "before")
    assert accept(folder, PROFILES).returncode == 0
    table = folder / "results/demo/tables/profiles.parquet"
    (acceptance,) = carried.acceptances(table)
    shutil.rmtree(folder / ".snakemake")
    shutil.copytree(folder / "before", folder / ".snakemake")
    assert to_run(folder)["table_profiles"] == 1
    assert accept(folder, PROFILES).returncode == 0
    assert "table_profiles" not in to_run(folder)
    assert carried.acceptances(table) == [acceptance]


def test_equal_results_under_several_fingerprints_are_known_as_the_same() -> None:
    history = History([Acceptance("x", "a", "b", "", ""), Acceptance("x", "b", "a", "", "")])
    history.add(Acceptance("y", "c", "d", "", ""))
    assert history.stands_for("a", ["b", "e"])
    assert history.stands_for("c", ["d"])
    assert history.stands_for("e", ["e"])
    assert not history.stands_for("a", ["c", "d"])
    assert history.took("d")
    assert not history.took("c")


def command_line(settings: object, upstream: list[str], decisive: str = "0") -> str:
    told = {"decisive": decisive, "settings": settings, "upstream": upstream}
    return f"python -m perfmis x --settings {shlex.quote(json.dumps(told))} > 'a b.log' 2>&1"


@pytest.mark.parametrize(
    ("before", "now", "fault"),
    [
        (command_line({"batch": 1}, ["u"]), command_line({"batch": 2}, ["u"]), None),
        (
            command_line({"a": 1, "b": 1}, [], "0"),
            command_line({"a": 2, "b": 1}, [], "1"),
            "other settings made it (a)",
        ),
        (command_line({}, [], "0"), command_line({}, [], "1"), "other settings made it (or other files)"),
        (command_line({}, ["u"]), command_line({}, ["v"]), "it was made from other results"),
        (command_line({"text": "it's"}, ["u"]), command_line({"text": "it's"}, ["u"]), None),
        (None, command_line({}, []), "it is not known what made it"),
        ("python -m perfmis x --settings '{\"settings\": {}}'", command_line({}, []), "it is not known what made it"),
    ],
)
def test_what_made_a_result_is_compared(before: str | None, now: str, fault: str | None) -> None:
    found = find_fault(read_command(before), read_command(now), ["u", "v"], History([]))
    assert (found or "").startswith(fault or "")
    assert (found is None) == (fault is None)


def test_protocols_that_were_taken_over_are_read(tmp_path: Path) -> None:
    """Their reader knows every field."""
    path = tmp_path / "short.json"
    content = protocols.load(REPOSITORY / "resources/protocols/tiny/short.yaml").model_dump(mode="json")
    artifacts.write_json({**content, "fingerprint": "0" * 16}, path)
    before = protocols.load(path)
    carried.restamp(path, "1" * 16, {"reason": "r"})
    assert protocols.load(path) == before


@pytest.mark.parametrize(
    ("target", "reason", "line"),
    [
        ("config", REASON, "error: config: is a folder"),
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
