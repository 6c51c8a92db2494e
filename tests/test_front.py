"""The front door: what there is to call, and what is said where there is not."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPOSITORY
from running import command

from perfmis import front
from perfmis.__main__ import main, run

ENTRIES = front.list_entries()
# A process that a run starts, with words that only it knows.
NOT_CALLED = {"after_failure"}


def test_every_module_with_a_main_is_listed_under_its_own_name() -> None:
    sources = {path: path.read_text() for path in (REPOSITORY / "perfmis").rglob("*.py")}
    callable_ = {
        ".".join(path.relative_to(REPOSITORY / "perfmis").with_suffix("").parts)
        for path, source in sources.items()
        if re.search(r"^def main\(argv: list\[str\]\)", source, re.MULTILINE)
    }
    assert {entry.name for entry in ENTRIES} == callable_ - NOT_CALLED


def test_every_stage_that_a_rule_runs_is_listed_as_one() -> None:
    rules = "".join(path.read_text() for path in (REPOSITORY / "workflow/rules").glob("*.smk"))
    run_by_rules = {name for name in re.findall(r"python -m perfmis ([\w.]+\w)", rules) if "fig" not in name}
    assert run_by_rules <= {entry.name for entry in ENTRIES if entry.kind == "Stage"}


def test_no_name_is_both_a_stage_and_a_command() -> None:
    assert set(Counter(entry.name for entry in ENTRIES).values()) == {1}
    assert {entry.kind for entry in ENTRIES} == set(front.KINDS)


def test_without_a_name_all_are_listed_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for entry in ENTRIES:
        assert sum(line.split()[:1] == [entry.name] for line in lines) == 1
    names = [line.split()[0] for line in lines if line.startswith("  figures.")]
    assert names == [f"figures.fig{number}" for number in range(1, len(names) + 1)]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vector", "error: vector: no such stage or command; did you mean vectors?"),
        ("gaps", "error: gaps: no such stage or command; did you mean tables.gaps?"),
        ("artifacts", "error: artifacts: no such stage or command; perfmis alone lists them"),
        ("../setup", "error: ../setup: no such stage or command; perfmis alone lists them"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(name: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name]) == 2
    assert capsys.readouterr().err.splitlines() == [line]


def test_the_console_script_is_the_module(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("perfmis")
    said = [command(tmp_path, *words) for words in ((str(script),), (sys.executable, "-m", "perfmis"))]
    assert [one.returncode for one in said] == [0, 0]
    assert said[0].stdout == said[1].stdout
