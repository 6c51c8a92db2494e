"""Checkpoints of a training job in scratch: sealed when whole, the newest sound one to go on from."""

import shutil
import sys
from pathlib import Path

from perfmis.artifacts import file_hash, read_json, write_json
from perfmis.stage import UserError

SEAL = "seal.json"
PROGRESS = "progress.json"


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL]
    return {str(path.relative_to(folder)): file_hash(path) for path in files}


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


def clear_others(scratch: Path, fingerprint: str) -> None:
    """Remove the checkpoints that other settings, code or inputs have left."""
    for folder in scratch.glob("*"):
        if folder.name != fingerprint:
            shutil.rmtree(folder)
