"""May results be written, and is there room for them?"""

import errno
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perfmis.checks import disk, weights
from perfmis.checks.finding import Finding
from perfmis.config import Study

if TYPE_CHECKING:
    from perfmis.plan import Row

GB = 1e9
LEEWAY = 60  # seconds that clocks of file servers may differ by
LEAST = 1 << 20  # bytes; with fewer not even logs are written
FETCHED = "base models"


def standing(path: Path) -> Path:
    """Return the folder itself, or the closest one above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def writable(study: Study) -> Finding:
    """Return whether the results can be written."""
    where = standing(Path(study.root))
    if not where.is_dir():
        return Finding("FAIL", "root", f"{where} is a file; move it, or set another root")
    if os.statvfs(where).f_flag & os.ST_RDONLY:
        return Finding("FAIL", "root", disk.line(disk.system(where), os.strerror(errno.EROFS)))
    if shutil.disk_usage(where).free < LEAST:
        return Finding("FAIL", "root", disk.line(disk.system(where), os.strerror(errno.ENOSPC)))
    if not os.access(where, os.W_OK | os.X_OK):
        return Finding("FAIL", "root", f"{where} cannot be written by this account; permit it, or set another root")
    return Finding("ok", "root", f"{study.root} can be written")


def times(study: Study) -> list[Finding]:
    """Return a failure where results have times in the future, as a clock that was ahead leaves them.

    Snakemake throws away what a job made when it is older than what it was made from.
    """
    until = time.time() + LEEWAY
    late = [path for path in _files(Path(study.root)) if _time(path) > until]
    if not late:
        return []
    text = (
        f"{min(late)} has a time in the future, as have {len(late) - 1} more: a clock is or was wrong; set it, then: "
        f"find {study.root} -newermt now -exec touch {{}} +"
    )
    return [Finding("FAIL", "clock", text)]


def _files(root: Path) -> Iterator[Path]:
    """Yield the files below a folder; those of another study below it, which is on, may vanish meanwhile."""
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names)


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def room(study: Study, rows: Sequence["Row"]) -> list[Finding]:
    """Compare free space with what the jobs that are left will write, by file system.

    Args:
        study: The study.
        rows: The rows of its plan.
    """
    wanted = {"root": 0.0, "hub cache": 0.0}
    for row in rows:
        wanted["hub cache" if row.stage == FETCHED else "root"] += row.disk_gb_left
    wanted["root"] += max((row.scratch_gb for row in rows if row.left), default=0.0)
    places = {"root": standing(Path(study.root)), "hub cache": standing(weights.cache())}
    if places["root"].stat().st_dev == places["hub cache"].stat().st_dev:
        wanted["root"] += wanted.pop("hub cache")
    return [_compared(name, places[name], need) for name, need in wanted.items()]


def _compared(name: str, place: Path, need: float) -> Finding:
    free = shutil.disk_usage(place).free / GB
    text = f"{free:,.0f} GB free in {place}, {need:,.0f} GB to be written by the plan"
    if free < need:
        variable = "HF_HOME" if name == "hub cache" else "root"
        return Finding("FAIL", f"disk, {name}", f"{text}; free space, or point {variable} to a larger file system")
    return Finding("ok", f"disk, {name}", text)
