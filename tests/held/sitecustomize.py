"""Faults of a machine, for tests/test_reliability.py; active in interpreters that have this folder on their path.

``HELD`` (a pattern of paths) stops a stage when it is about to write such a file, so that a test can do harm just
then; ``HELD_SKIP`` is how many such writes pass before, and ``HELD_BY`` a file that gets the number of the stopped
process. ``JUMP`` (seconds) sets the clock of a submitter once it has started a job.
"""

import fnmatch
import os
import signal
import sys
import time
from typing import Any

CHANGES = os.O_WRONLY | os.O_RDWR


def _target(event: str, arguments: tuple[Any, ...]) -> str | None:
    """Return the file that an event of the interpreter changes."""
    if event == "open":
        path, _, flags = arguments
        return os.fsdecode(path) if isinstance(path, str | bytes) and flags & CHANGES else None
    return os.fsdecode(arguments[1]) if event == "os.rename" else None


def _hold(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("open", "os.rename") or "HELD" not in os.environ:
        return
    path = _target(event, arguments)
    if path is None or not fnmatch.fnmatch(path, os.environ["HELD"]):
        return
    if skip := int(os.environ["HELD_SKIP"]):
        os.environ["HELD_SKIP"] = str(skip - 1)
        return
    del os.environ["HELD"]
    with open(os.environ["HELD_BY"] + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(file.name, os.environ["HELD_BY"])
    os.kill(os.getpid(), signal.SIGSTOP)


def _jump(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and "JUMP" in os.environ and "-m perfmis" in str(arguments[1]):
        seconds, now = float(os.environ.pop("JUMP")), time.time
        time.time = lambda: now() + seconds


if sys.orig_argv[1:3] == ["-m", "perfmis"]:
    sys.addaudithook(_hold)
elif sys.orig_argv[1:3] == ["-m", "snakemake"]:
    sys.addaudithook(_jump)
