"""What the tables share: reading, the order of rows, and writing as Parquet with a CSV beside it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from perfmis.artifacts import read_parquet, write_bytes, write_parquet
from perfmis.stage import Job, UserError
from perfmis.statistics import Array, interval
from perfmis.vocabulary import BASE

Row = dict[str, Any]
MISSING = "missing"  # a column of tables that lack something: what, and why; null in all other rows


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
    """Return tables or outcomes as one frame; without files one without rows, with the column ``model``.

    Rows that say what a table lacks are left out.
    """
    return present(read_parquet(paths, job.upstream)) if paths else pl.DataFrame(schema={"model": pl.String})


def lacking(job: Job) -> list[Row]:
    """Return ``model``, ``seed`` and ``missing`` (what and why) of the results that failed jobs have taken."""
    return list(job.settings.get("missing", []))


def present(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a table without the rows that say what it lacks, as it is where it lacks nothing."""
    return frame.filter(pl.col(MISSING).is_null()).drop(MISSING) if MISSING in frame.columns else frame


def with_missing(frame: pl.DataFrame, missing: Sequence[Row]) -> pl.DataFrame:
    """Return a table with a row for each result that it lacks: null but for the model, the seed and ``missing``."""
    if not missing:
        return frame
    rows = pl.DataFrame(list(missing), schema={"model": pl.String, "seed": pl.Int64, MISSING: pl.String})
    columns = [name for name in rows.columns if name in (*frame.columns, MISSING)]
    return pl.concat([frame, rows.select(columns)], how="diagonal_relaxed")


def comparable(outcomes: pl.DataFrame, missing: Sequence[Row]) -> pl.DataFrame:
    """Return the rows of one model that can be pooled: of the training seeds that lack none of its checkpoints.

    Where each seed lacks some, of those with the most checkpoints.
    """
    if not any(row["model"] == outcomes["model"][0] for row in missing):
        return outcomes
    trained = outcomes.filter(pl.col("checkpoint") != BASE)
    held = {seed: frozenset(own["checkpoint"]) for (seed,), own in sorted(trained.group_by("seed"))}
    most = max(held.values(), key=len, default=frozenset())
    return outcomes.filter(pl.col("seed").is_in([seed for seed, own in held.items() if own == most]))


def of_models(frame: pl.DataFrame, models: Iterable[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield (model, its rows) in the order of ``models``, without models that have no rows."""
    for model in models:
        rows = frame.filter(pl.col("model") == model)
        if rows.height:
            yield model, rows


def by_seed(frame: pl.DataFrame, missing: Sequence[Row] = ()) -> Iterator[tuple[int | None, pl.DataFrame]]:
    """Yield (None, all rows) and then (training seed, its rows); where some are missing, all that can be pooled."""
    yield None, comparable(frame, missing) if missing else frame
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


def write(frame: pl.DataFrame, output: Path, fingerprint: str, missing: Sequence[Row] = ()) -> None:
    """Write ``output`` (Parquet) and the same rows as CSV beside it, with those that say what is missing."""
    frame = with_missing(frame, missing)
    write_parquet(frame, output, fingerprint)
    write_bytes(frame.write_csv(float_precision=6).encode(), output.with_suffix(".csv"))
