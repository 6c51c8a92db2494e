"""What `perfmis` can be asked for: its stages and commands, as the first lines of their modules name them."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from perfmis.provenance import ROOT, module_path

KINDS = {
    "Command": "Commands, for people",
    "Stage": "Stages, which the workflow runs",
}
_FIRST_LINE = re.compile(r'"""(?P<kind>Command|Stage) `(?P<name>[\w.]+)`: (?P<summary>.+)')


@dataclass(frozen=True)
class Entry:
    """Something that can be called.

    Attributes:
        name: The module's name below the package.
        kind: A key of `KINDS`.
        summary: One line.
    """

    name: str
    kind: str
    summary: str


def read_entry(path: Path) -> Entry | None:
    """Return what a module can be called as; None where it cannot."""
    with path.open(encoding="utf-8") as file:
        match = _FIRST_LINE.match(file.readline())
    return Entry(match["name"], match["kind"], match["summary"].rstrip()) if match else None


def find_entry(name: str) -> Entry | None:
    """Return the stage or command of a name; None where there is none."""
    path = module_path(f"perfmis.{name}")
    return read_entry(path) if path else None


def list_entries() -> list[Entry]:
    """Return all stages and commands, by kind and name."""
    found = [entry for path in ROOT.rglob("*.py") if (entry := read_entry(path))]
    return sorted(found, key=lambda entry: (list(KINDS).index(entry.kind), _natural(entry.name)))


def _natural(name: str) -> list[str]:
    """Return a key by which fig10 comes after fig9."""
    return [part.zfill(4) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def suggest_name(name: str) -> str | None:
    """Return the stage or command whose name is nearest to one that there is not; None where none is near."""
    names = [entry.name for entry in list_entries()]
    last = {each.rsplit(".", 1)[-1]: each for each in names}
    near = difflib.get_close_matches(name, [*names, *last], 1)
    return last.get(near[0], near[0]) if near else None


def describe() -> str:
    """Return the list for people, a line each."""
    entries = list_entries()
    width = max(len(entry.name) for entry in entries)
    lines = ["usage: perfmis NAME ..., or python -m perfmis NAME ...; NAME --help tells its options"]
    for kind, title in KINDS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {entry.name:{width}}  {entry.summary}" for entry in entries if entry.kind == kind]
    return "\n".join(lines)
