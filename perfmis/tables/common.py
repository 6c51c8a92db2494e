"""What the tables share: reading, the order of rows, and writing as Parquet with a CSV beside it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from perfmis.artifacts import read_parquet, write_bytes, write_parquet
from perfmis.stage import Job, UserError
from perfmis.statistics import Array, interval

Row = dict[str, Any]


def setting(job: Job, key: str) -> Any:
    """Return one of the job's settings.

    Raises:
        UserError: The workflow did not pass it.
    """
    try:
        return job.settings[key]
    except KeyError as error:
        raise UserError(f"--settings: no key {key!r} in `settings`; pass that part of the configuration") from error


def bounded(name: str, replicates: Array, confidence: float, prefix: str | None = None) -> Row:
    """Return ``{name: estimate, prefix_low: ..., prefix_high: ...}``; the prefix is the name unless given."""
    low, high = interval(replicates, confidence)
    start = f"{name}_" if prefix is None else prefix
    return {name: float(replicates[0]), f"{start}low": low, f"{start}high": high}


def read(paths: Sequence[Path], job: Job) -> pl.DataFrame:
    """Return tables or outcomes as one frame; without files one without rows, with the column ``model``."""
    return read_parquet(paths, job.upstream) if paths else pl.DataFrame(schema={"model": pl.String})


def of_models(frame: pl.DataFrame, models: Iterable[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield (model, its rows) in the order of ``models``, without models that have no rows."""
    for model in models:
        rows = frame.filter(pl.col("model") == model)
        if rows.height:
            yield model, rows


def by_seed(frame: pl.DataFrame) -> Iterator[tuple[int | None, pl.DataFrame]]:
    """Yield (None, all rows) and then (training seed, its rows)."""
    yield None, frame
    for seed in sorted(frame["seed"].unique()):
        yield seed, frame.filter(pl.col("seed") == seed)


def joined(parts: Sequence[str]) -> str:
    """Return warnings as one cell, each once and in order."""
    return "; ".join(dict.fromkeys(part for part in parts if part))


def doubt(validation: pl.DataFrame, model: str, checkpoint: str, rubric: str = "compliance") -> str:
    """Return the warning that rows of a checkpoint need where they rest on the judge, or an empty string."""
    here = (pl.col("model") == model) & (pl.col("checkpoint") == checkpoint) & (pl.col("rubric") == rubric)
    status = validation.filter(here)["status"][0]
    return "" if status == "met" else f"judge of {rubric}: {status}"


def table(rows: Sequence[Row], schema: Mapping[str, Any]) -> pl.DataFrame:
    """Return rows as a frame with the columns of ``schema``; NaN (undefined) becomes null."""
    return pl.DataFrame(list(rows), schema=dict(schema), orient="row").with_columns(pl.selectors.float().fill_nan(None))


def write(frame: pl.DataFrame, output: Path, fingerprint: str) -> None:
    """Write ``output`` (Parquet) and the same rows as CSV beside it."""
    write_parquet(frame, output, fingerprint)
    write_bytes(frame.write_csv(float_precision=6).encode(), output.with_suffix(".csv"))
