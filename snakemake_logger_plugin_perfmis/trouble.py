"""What to tell of a job that ended without a word, and of a start that Snakemake refuses.

A stage that fails by itself says why in its log. One that was killed says nothing, and on a full disk its log cannot
be written either.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from perfmis import status
from perfmis.checks import disk
from snakemake_logger_plugin_perfmis.journal import path as journal_of

LOCKS = Path(".snakemake/locks")
# Of jobs that failed, which have been told of already, with their logs.
TOLD = ("CalledProcessError", "At least one job did not complete")
KILLED = (
    "error: killed, since its log ends without an error: by whoever stopped the run, else mostly for lack of memory; "
    "start again, with more if it happens again; it goes on from its last checkpoint or its kept samples"
)
LEAST = 1 << 16  # bytes; with fewer left a log of a few lines is not written


def silent_end(logs: Iterable[str]) -> str | None:
    """Return the reason of a job's end where its logs have none."""
    paths = [Path(log) for log in logs]
    said = "\n".join(path.read_text(errors="replace") for path in paths if path.is_file())
    if any(line.startswith(("error: ", "Traceback ")) for line in said.splitlines()):
        return None
    for path in paths:
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        if shutil.disk_usage(folder).free < LEAST:
            return f"error: {disk.line(disk.system(folder), os.strerror(errno.ENOSPC))}"
    return KILLED


def refusal(exception: str, message: str) -> str | None:
    """Return what to say of an error of Snakemake's own; None where all has been said."""
    if exception == "LockException":
        return f"error: {_locked()}"
    if exception == "ProtectedOutputException":
        return f"error: {_protected(Path(message.splitlines()[-1].strip()))}"
    if why := disk.cause(message):
        return f"error: {disk.line(disk.system(Path.cwd()), why)}"
    return None if any(part in message for part in TOLD) else message


def _protected(path: Path) -> str:
    """Return what to say of a result that exists and cannot be written anew."""
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return disk.line(disk.system(path), os.strerror(errno.EROFS))
    return f"{path}: has to be written anew and is write-protected; permit it by chmod u+w, or set another root"


def _locked() -> str:
    run = next(_holders(), None)
    unlock = "run the same command with --unlock, then again without"
    if run is None:
        return f"another run works in {os.getcwd()}, or died in it and left its lock; if none is on, {unlock}"
    who = f"process {run.pid} on {run.host}"
    match run.alive():
        case True:
            return f"{who} works here already; wait for it, and look at it by python -m perfmis status"
        case False:
            return f"{who} died and left its lock; {unlock}: it goes on where that one was"
        case None:
            return f"{who} has locked this folder; if it is no longer on there, {unlock}"


def _holders() -> Iterator[status.Run]:
    """Yield the last runs of the studies whose files are locked."""
    for lock in sorted(LOCKS.glob("*.lock")):
        for line in lock.read_text().splitlines():
            for folder in Path(line).parents:
                if journal_of(folder).is_file() and (found := status.runs(status.events(journal_of(folder)))):
                    yield found[-1]
