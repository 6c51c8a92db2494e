"""Reading and writing artifacts: whole or not at all, fingerprinted, never mixed, and sealed.

A seal is the SHA-256 of a file's own content, kept inside of it. Parquet decodes most flipped bits to other values
without an error, and in JSON a digit is as good as any other, so only a hash tells what a disk or a copy has damaged.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from perfmis.stage import UserError, canonical

SEAL, ACCEPTED = "seal", "accepted"
_MARK, _DIGITS = b"sha256:", 64
_BLANK = _MARK + b"0" * _DIGITS


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        OSError: It cannot be written; the error names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        error.filename = str(path)
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _sealed(content: bytes) -> bytes:
    """Return a parquet file whose footer holds a blank seal with the seal filled in."""
    start = content.rindex(_BLANK) + len(_MARK)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[:start] + digest + content[start + _DIGITS :]


def _sound(content: bytes) -> bool:
    """Say whether a parquet file is as it was written; one that other tools wrote has no seal, and counts as sound."""
    start = content.rfind(_MARK)
    if start < 0:
        return True
    start += len(_MARK)
    blank = content[:start] + b"0" * _DIGITS + content[start + _DIGITS :]
    return hashlib.sha256(blank).hexdigest().encode() == content[start : start + _DIGITS]


def write_parquet(
    frame: pl.DataFrame, path: Path | str, fingerprint: str, accepted: Sequence[dict[str, Any]] = ()
) -> None:
    """Write a table whose every row carries ``fingerprint``; the file appears whole or not at all.

    Args:
        frame: The table.
        path: Where to.
        fingerprint: What it is made from.
        accepted: As what it was taken over (`perfmis.accept`).
    """
    buffer = BytesIO()
    metadata = {ACCEPTED: json.dumps(list(accepted))} if accepted else {}
    metadata[SEAL] = _BLANK.decode()
    frame.with_columns(fingerprint=pl.lit(fingerprint)).write_parquet(buffer, metadata=metadata)
    write_bytes(_sealed(buffer.getvalue()), Path(path))


def acceptances_of_parquet(path: Path) -> list[dict[str, Any]]:
    """Return as what a table was taken over, from its footer."""
    found = pl.read_parquet_metadata(path).get(ACCEPTED)
    return list(json.loads(found)) if found else []


def read_one(path: Path | str) -> pl.DataFrame:
    """Read one table.

    Raises:
        UserError: It is missing, unreadable or damaged.
    """
    try:
        content = Path(path).read_bytes()
        frame = pl.read_parquet(BytesIO(content)) if _sound(content) else None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and rerun") from error
    if frame is None:
        raise UserError(f"{path}: damaged, its content is not that which was written; delete it and rerun")
    return frame


def read_parquet(paths: Iterable[Path | str], upstream: Collection[str]) -> pl.DataFrame:
    """Read tables as one, refusing rows that something else than the stated upstream made.

    Args:
        paths: Parquet files with a ``fingerprint`` column.
        upstream: Fingerprints that may stand in it.

    Raises:
        UserError: A file is missing, unreadable, damaged or carries another fingerprint.
    """
    frames = []
    for path in paths:
        frame = read_one(path)
        if "fingerprint" not in frame.columns:
            raise UserError(f"{path}: has no column fingerprint, so no stage made it; delete it and rerun")
        found = set(frame["fingerprint"].unique())
        if not found <= set(upstream):
            raise UserError(f"{path}: made by other settings or code ({', '.join(sorted(found))}); delete and rerun")
        frames.append(frame)
    return pl.concat(frames, how="diagonal_relaxed")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(content: dict[str, Any], path: Path | str) -> None:
    """Write JSON that appears whole or not at all, with a seal."""
    plain = json.loads(json.dumps(content))
    sealed = {**plain, SEAL: _digest(plain)}
    write_bytes((json.dumps(sealed, indent=2, sort_keys=True) + "\n").encode(), Path(path))


def read_json(path: Path | str) -> Any:
    """Read JSON without its seal, naming the file when it is broken; what other tools wrote has none."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and rerun") from error
    if isinstance(content, dict) and SEAL in content and content.pop(SEAL) != _digest(content):
        raise UserError(f"{path}: damaged, its content is not that which was written; delete it and rerun")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()
