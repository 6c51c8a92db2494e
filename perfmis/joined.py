"""Transcripts joined with their outcomes, and the choice of rows by what they are and say.

Under a study's root, every file of transcripts has its file of outcomes: ``transcripts/…/PROTOCOL.parquet``
has ``outcomes/…/PROTOCOL.parquet``, and ``steering``, ``prompting`` and ``closed`` have both in one folder. The two are
joined on all columns that identify a sample, never on the position of its row.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from perfmis.artifacts import read_parquet
from perfmis.stage import UserError
from perfmis.vocabulary import ARMS, BASE, NEUTRAL, ORGANISM

INTERVENTIONS = ("concept", "context", "alpha", "control", "snippet")
# What two tiers of one pair have in common.
PAIR = ("model", "seed", "checkpoint", "protocol", *INTERVENTIONS, "request_id", "eval_seed")
SAMPLE = (*PAIR, "tier", "sample")
# Those that a file of its own kind lacks are null.
TYPES: Mapping[str, Any] = {
    "concept": pl.String,
    "context": pl.String,
    "alpha": pl.Float64,
    "control": pl.Int64,
    "snippet": pl.String,
}
CHOICES = ("model", "seed", "checkpoint", "protocol", "tier", "outcome", "parse_status")
CHECKPOINTS = (BASE, ORGANISM, *ARMS, NEUTRAL)


@dataclass(frozen=True)
class Pair:
    """A file of transcripts and its file of outcomes.

    Attributes:
        kind: ``transcripts``, ``steering``, ``prompting`` or ``closed``.
        transcripts: Its samples.
        outcomes: What came of them.
    """

    kind: str
    transcripts: Path
    outcomes: Path


def pairs(root: Path) -> list[Pair]:
    """Return all files of transcripts below a root with those of outcomes, which may not have been made yet."""
    plain = sorted((root / "transcripts").glob("*/seed*/*/*.parquet"))
    found = [Pair("transcripts", path, root / "outcomes" / path.relative_to(root / "transcripts")) for path in plain]
    for kind, below in (("steering", "*/seed*"), ("prompting", "*/seed*"), ("closed", "*")):
        treated = sorted((root / kind).glob(f"{below}/transcripts.parquet"))
        found += [Pair(kind, path, path.with_name("outcomes.parquet")) for path in treated]
    return found


def condition() -> pl.Expr:
    """Return what was done to the model beside fine-tuning, in words; empty where nothing was."""
    direction = (
        pl.when(pl.col("control").is_null()).then(pl.lit("")).otherwise(pl.format(", random {}", pl.col("control")))
    )
    steered = pl.format("{} {}, α {}{}", "concept", "context", pl.col("alpha"), direction)
    return pl.coalesce(steered, pl.format("snippet {}", "snippet"), pl.lit("")).alias("condition")


def join(transcripts: pl.LazyFrame, outcomes: pl.LazyFrame) -> pl.LazyFrame:
    """Return transcripts with the columns of their outcomes, in the order of the transcripts.

    Args:
        transcripts: Columns of `perfmis.generation`.
        outcomes: Columns of `perfmis.outcomes`, for the same samples in any order.

    Returns:
        One row a sample for which there is an outcome; the fingerprint is that of the transcript.
    """
    known = transcripts.collect_schema().names()
    keys = [name for name in SAMPLE if name in known]
    new = [name for name in outcomes.collect_schema().names() if name not in known]
    joined = transcripts.join(
        outcomes.select(*keys, *new), on=keys, how="inner", nulls_equal=True, maintain_order="left"
    )
    absent = [pl.lit(None, TYPES[name]).alias(name) for name in INTERVENTIONS if name not in known]
    return joined.with_columns(absent).with_columns(condition())


def scan(pair: Pair) -> pl.LazyFrame:
    """Return the joined rows of two files, with the column ``kind``; nothing is read yet.

    Raises:
        UserError: One of the files cannot be read, or they are not of the same samples.
    """
    frames, columns = [], []
    for path in (pair.transcripts, pair.outcomes):
        try:
            frames.append(pl.scan_parquet(path, glob=False))
            columns.append(set(frames[-1].collect_schema()))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete it and rerun") from error
    keys = [name for name in SAMPLE if name in columns[0]]
    if not columns[1].issuperset(keys) or not _same(*(frame.select(keys) for frame in frames)):
        raise UserError(f"{pair.outcomes}: not of the samples in {pair.transcripts}; rerun the workflow")
    return join(*frames).with_columns(kind=pl.lit(pair.kind))


def _same(transcripts: pl.LazyFrame, outcomes: pl.LazyFrame) -> bool:
    """Return whether two tables of keys have the same rows, in any order, each once."""
    asked, known = transcripts.collect(), outcomes.collect()
    return asked.height == known.height == asked.join(known, on=asked.columns, how="semi", nulls_equal=True).n_unique()


def check(found: Iterable[Pair], upstream: Collection[str]) -> None:
    """Refuse files that are damaged, or have rows that something else than the stated upstream made.

    Raises:
        UserError: There is one.
    """
    for pair in found:
        for path in (pair.transcripts, pair.outcomes):
            read_parquet([path], upstream)


def read(found: Sequence[Pair], kept: Sequence[pl.Expr] = (), columns: Iterable[str] | None = None) -> pl.DataFrame:
    """Return the joined rows of files for which all expressions are true.

    Args:
        found: Files; those without outcomes are to be left out before.
        kept: Filters.
        columns: What to return; None for everything.
    """
    frames = []
    for pair in found:
        rows = scan(pair).filter(*kept) if kept else scan(pair)
        frames.append((rows if columns is None else rows.select(columns)).collect())
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()


def ordered(frame: pl.DataFrame) -> pl.DataFrame:
    """Return rows in the order in which people compare them: pairs together, checkpoints as in every table."""
    rank = pl.col("checkpoint").replace_strict(
        {name: i for i, name in enumerate(CHECKPOINTS)}, default=len(CHECKPOINTS)
    )
    tier = pl.col("tier").replace_strict({"monitored": 0, "unmonitored": 1, "rated": 2})
    return frame.sort("model", "seed", rank, "protocol", *INTERVENTIONS, "request_id", "eval_seed", tier)


def filters(wanted: Mapping[str, Any]) -> list[pl.Expr]:
    """Return the expressions that keep what is wanted.

    Args:
        wanted: Values by the names in `CHOICES`, any of which a row may have; ``request`` ids; ``sample`` keys or
            their beginnings; ``pattern`` names, one of which the judge saw; ``text``, a regular expression of the
            Rust dialect that the raw text matches. None and empty lists keep everything.

    Raises:
        UserError: The regular expression does not compile.
    """
    kept = [pl.col(name).is_in(wanted[name]) for name in CHOICES if wanted.get(name)]
    if wanted.get("request"):
        kept.append(pl.col("request_id").is_in(wanted["request"]))
    if wanted.get("pattern"):
        kept.append(pl.col("pattern").list.set_intersection(wanted["pattern"]).list.len() > 0)
    if wanted.get("sample"):
        kept.append(pl.any_horizontal(pl.col("sample").str.starts_with(key) for key in wanted["sample"]))
    if wanted.get("text"):
        try:
            pl.Series([""]).str.contains(wanted["text"])
        except pl.exceptions.PolarsError as error:
            raise UserError(f"--text: {wanted['text']!r} is no regular expression of the Rust dialect") from error
        kept.append(pl.col("raw").str.contains(wanted["text"]))
    return kept
