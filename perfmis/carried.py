"""Which fingerprint a file of results carries, so that it is known wherever it is copied to."""

import re
from pathlib import Path
from typing import Any

from perfmis.artifacts import (
    ACCEPTED,
    acceptances_of_parquet,
    read_json,
    read_one,
    write_bytes,
    write_json,
    write_parquet,
)
from perfmis.stage import UserError

_COMMENTS = {".svg": "<!-- {} -->\n", ".html": "<!-- {} -->\n", ".rst": "\n.. {}\n"}
NOTED = (".parquet", ".json")  # hold as what they were taken over, beside their fingerprint
_LAST = re.compile(r"fingerprint: ([0-9a-f]{16})(?: -->)?\n\Z")
_TAIL = 64  # characters that hold the last line


def comment(path: Path, fingerprint: str) -> str:
    """Return the last line of a picture or page, which carries the fingerprint; readers do not see it."""
    return _COMMENTS[path.suffix].format(f"fingerprint: {fingerprint}")


def fingerprints(path: Path) -> set[str]:
    """Return the fingerprints that a file carries: one, or none where it is of a kind that carries none or damaged."""
    if path.suffix == ".parquet":
        import polars as pl

        try:
            return set(pl.scan_parquet(path, glob=False).select("fingerprint").unique().collect()["fingerprint"])
        except (OSError, pl.exceptions.PolarsError):
            return set()
    if path.suffix == ".json":
        try:
            content = read_json(path)
        except UserError:
            return set()
        return {content["fingerprint"]} if isinstance(content, dict) and "fingerprint" in content else set()
    if path.suffix in _COMMENTS:
        return set(_LAST.findall(path.read_text(errors="replace")[-_TAIL:]))
    return set()


def acceptances(path: Path) -> list[dict[str, Any]]:
    """Return as what a table or JSON file was taken over (`perfmis.accept`), the last time last; none where never."""
    if path.suffix == ".parquet":
        return acceptances_of_parquet(path)
    if path.suffix == ".json":
        content = read_json(path)
        return list(content.get(ACCEPTED, [])) if isinstance(content, dict) else []
    return []


def restamp(path: Path, fingerprint: str, acceptance: dict[str, Any]) -> None:
    """Write another fingerprint into a file of results, and as what it was taken over; nothing into one that has none.

    Raises:
        UserError: The file is damaged.
    """
    if not fingerprints(path):
        return
    if path.suffix == ".parquet":
        write_parquet(read_one(path), path, fingerprint, [*acceptances(path), acceptance])
    elif path.suffix == ".json":
        content = {**read_json(path), "fingerprint": fingerprint, ACCEPTED: [*acceptances(path), acceptance]}
        write_json(content, path)
    else:
        text, line = path.read_bytes(), comment(path, fingerprint).encode()
        write_bytes(text[: text.rindex(line.partition(b"fingerprint")[0])] + line, path)
