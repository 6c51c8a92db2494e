"""Checkpoints of a training job in scratch: sealed when whole, the newest sound one to go on from."""

import hashlib
import shutil
import sys
from pathlib import Path

from perfmis.artifacts import read_json, write_json
from perfmis.stage import UserError

SEAL = "seal.json"
PROGRESS = "progress.json"


def _hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != SEAL:
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def seal(folder: Path) -> None:
    """Record the hash of every file of a checkpoint; without that record a checkpoint counts as half written."""
    write_json(_hashes(folder), folder / SEAL)


def sound(folder: Path) -> bool:
    """Say whether a checkpoint is whole and as it was written."""
    try:
        return bool(read_json(folder / SEAL) == _hashes(folder))
    except (UserError, OSError):
        return False


def newest(scratch: Path) -> Path | None:
    """Return the newest sound checkpoint, after removing the ones that are not; None to start afresh."""
    found = sorted(scratch.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for folder in found:
        if sound(folder):
            print(f"going on from {folder}", file=sys.stderr)
            return folder
        print(f"{folder} is half written or damaged: removed", file=sys.stderr)
        shutil.rmtree(folder)
    return None


def clear(scratch: Path, keep: str | None = None) -> None:
    """Remove checkpoints of a job: all, or all but those of one fingerprint."""
    for folder in scratch.glob("*"):
        if folder.name != keep:
            shutil.rmtree(folder)
    if keep is None:
        shutil.rmtree(scratch, ignore_errors=True)
