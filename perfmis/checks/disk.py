"""One line where a file could not be written: the disk or the quota is full, or the file system is read-only."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

CAUSES = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)}


def cause(text: str) -> str | None:
    """Return which of the causes an error's text names; libraries that are not written in Python pass on no number."""
    return next((known for known in CAUSES if known in text), None)


def line(place: object, why: str) -> str:
    """Return what to tell a user."""
    fix = "mount it for writing" if CAUSES[why] == errno.EROFS else "free space there"
    return f"{place}: cannot be written ({why}); {fix} or set another root, then start again: what was done is kept"


def system(path: Path) -> Path:
    """Return where the file system of a path is mounted."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.is_mount())


def told(error: Exception, words: Sequence[str]) -> str | None:
    """Return the line for an error of writing; None for any other error.

    Args:
        error: What a stage raised.
        words: The stage's command line; its output is named where the error names no file.
    """
    why = cause(str(error))
    if why is None:
        return None
    return line(getattr(error, "filename", None) or words[words.index("--output") + 1], why)
