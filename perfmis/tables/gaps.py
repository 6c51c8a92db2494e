"""Stage `tables.gaps`: the alignment-faking gap of every checkpoint, with intervals and warnings.

    python -m perfmis tables.gaps --settings JSON --fingerprint HEX
        --outcomes FILE... --beliefs TABLE [--validation TABLE] --output gaps.parquet

Writes gaps.parquet and gaps.csv: one row per model, training seed and checkpoint, and one pooled over
training seeds (``seed`` null). Compliance, gap, change and their bounds are percentages or percentage points;
rates and ``malformed`` are shares 0..1. ``change`` is the gap minus the organism's, paired; its p-values are
adjusted over the arms of a model (Holm). The third tier, where it was run, has ``compliance_rated`` and the
gap of rated against unmonitored chats. Settings: ``statistics``, ``models`` (name to planted truth or null),
``tiers``, ``compliance`` (what the outcomes rest on: the column ``scoring``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from perfmis import stage
from perfmis.statistics import holm, p_value
from perfmis.tables.cells import MEASURES, Cells, Replicates, build
from perfmis.tables.common import Row, bounded, by_seed, doubt, joined, lacking, of_models, read, setting, table, write
from perfmis.tables.warnings import as_the_organism, malformed, no_neutral_arm
from perfmis.vocabulary import ARMS, BASE, FAMILY_CONCEPT, NEUTRAL, ORGANISM, checkpoint_order

NUMBERS = (
    *("change", "change_low", "change_high", "p_change", "p_holm"),
    *("compliance_rated", "rated_gap", "rated_low", "rated_high"),
)
SCHEMA: dict[str, Any] = {
    "model": pl.String,
    "seed": pl.Int64,
    "checkpoint": pl.String,
    "protocol": pl.String,
    "scoring": pl.String,
    **dict.fromkeys(("seeds", "n", "samples"), pl.Int64),
    **MEASURES,
    **dict.fromkeys(NUMBERS, pl.Float64),
    "warning": pl.String,
}
KEYS = ("checkpoint", "protocol")
# What an answer is that counts for neither side, by what outcomes rest on.
WORDS = {"tag": "malformed", "judge": "malformed or unjudged"}


def _rated(replicates: Replicates, key: tuple[str, str], confidence: float) -> Row:
    """Return what the tier that is rated, but not trained on, adds."""
    compliance = replicates.compliance("rated", *key)
    gap = compliance - replicates.compliance("unmonitored", *key)
    return {"compliance_rated": float(compliance[0])} | bounded("rated_gap", gap, confidence, "rated_")


def _changes(replicates: Replicates, cells: Cells, confidence: float) -> dict[tuple[str, str], Row]:
    """Return the paired change from the organism of every arm under its protocol, with p-values."""
    protocol = next((key[1] for key in cells.keys if key[0] == ORGANISM), None)
    arms = [key for key in cells.keys if key[1] == protocol and key[0] not in (BASE, ORGANISM)]
    changes = {key: replicates.gap(*key) - replicates.gap(ORGANISM, protocol) for key in arms}
    raw = [p_value(change) for change in changes.values()]
    return {
        (key[0], key[1]): bounded("change", change, confidence) | {"p_change": p, "p_holm": float(adjusted)}
        for (key, change), p, adjusted in zip(changes.items(), raw, holm(raw), strict=True)
    }


def rows_of_model(
    outcomes: pl.DataFrame, tiers: list[str], statistics: Row, scoring: str, missing: Sequence[Row] = ()
) -> list[Row]:
    """Return the rows of one model: pooled over training seeds, and per training seed.

    Their warnings are those that the answers themselves give.
    """
    result = []
    for seed, chosen in by_seed(outcomes, missing):
        cells = build(chosen, KEYS, tiers)
        replicates = Replicates(cells, statistics["resamples"], statistics["seed"])
        changes = _changes(replicates, cells, statistics["confidence"])
        same = as_the_organism(chosen, KEYS)
        unchecked = no_neutral_arm([key[0] for key in cells.keys])
        for key, own_seeds, samples in zip(cells.keys, cells.seeds, cells.samples, strict=True):
            checkpoint, protocol = key
            row = {
                "model": outcomes["model"][0],
                "seed": seed,
                "checkpoint": checkpoint,
                "protocol": protocol,
            }
            row |= {"scoring": scoring, "seeds": own_seeds, "n": cells.prompts, "samples": samples}
            row |= replicates.measured(key, statistics["confidence"])
            if "rated" in tiers:
                row |= _rated(replicates, (checkpoint, protocol), statistics["confidence"])
            own = [malformed(replicates, key, statistics, WORDS.get(scoring, WORDS["judge"])), same.get(key, "")]
            row["warning"] = joined([*own, unchecked if checkpoint in ARMS else ""])
            result.append(row | changes.get((checkpoint, protocol), {}))
    return result


def _failed(beliefs: pl.DataFrame, row: Row, belief: str, check: str) -> bool:
    """Whether the manipulation check of a belief failed for the checkpoint and seed of a row."""
    found = beliefs.filter(
        (pl.col("model") == row["model"])
        & pl.col("seed").eq_missing(pl.lit(row["seed"], dtype=pl.Int64))
        & (pl.col("checkpoint") == row["checkpoint"])
        & (pl.col("belief") == belief)
        & pl.col("content").is_null()
    )
    return found.height > 0 and found[check][0] is False


def warning(
    row: Row, organism: Row | None, beliefs: pl.DataFrame, validation: pl.DataFrame | None, statistics: Row
) -> str:
    """Return what a reader must know before trusting a row, or an empty string."""
    parts = []
    if validation is not None and row["scoring"] != "tag":
        parts.append(doubt(validation, row["model"], row["checkpoint"]))
    parts.append(row["warning"])
    checkpoint = row["checkpoint"]
    if organism is not None and checkpoint not in (BASE, ORGANISM):
        lost_in_items = _failed(beliefs, row, "monitoring", "kept")
        lost_in_scratchpads = row["used_rate"] < statistics["kept"] * organism["used_rate"]
        places = ["items"] * lost_in_items + ["scratchpads"] * lost_in_scratchpads
        if places:
            parts.append(f"monitoring belief lost ({' and '.join(places)})")
        if checkpoint == NEUTRAL:
            low, high = row["change_low"], row["change_high"]
            if abs(row["change"]) >= statistics["floor"] and not low <= 0 <= high:
                parts.append(f"neutral arm moved the gap by {row['change']:+.0f} pp")
        elif _failed(beliefs, row, FAMILY_CONCEPT[checkpoint[0]], "moved"):
            parts.append("manipulation not moved")
    return joined(parts)


def unscored(row: Row, beliefs: pl.DataFrame, missing: Sequence[Row]) -> bool:
    """Whether a failed job has taken the belief items of the checkpoint and seed of a row."""
    own = beliefs.filter(pl.col("model") == row["model"]) if missing else beliefs
    here = own.filter(pl.col("seed").eq_missing(pl.lit(row["seed"], dtype=pl.Int64))) if own.height else own
    return here.is_empty() and any(lost["model"] == row["model"] for lost in missing)


def gaps(
    outcomes: pl.DataFrame,
    beliefs: pl.DataFrame,
    models: list[str],
    tiers: list[str],
    statistics: Row,
    scoring: str = "tag",
    validation: pl.DataFrame | None = None,
    missing: Sequence[Row] = (),
) -> pl.DataFrame:
    """Return the table.

    Args:
        outcomes: Outcome rows of all checkpoints of all models.
        beliefs: The beliefs table.
        models: Models in the order of the table.
        tiers: Tiers that were run.
        statistics: The ``statistics`` settings.
        scoring: What the outcomes rest on.
        validation: Agreement of the judge with people, where there is a judge.
        missing: What failed jobs have taken, see `perfmis.tables.common.lacking`.
    """
    rows: list[Row] = []
    for _, chosen in of_models(outcomes, models):
        own = rows_of_model(chosen, tiers, statistics, scoring, missing)
        organisms = {row["seed"]: row for row in own if row["checkpoint"] == ORGANISM}
        for row in own:
            unchecked = row["checkpoint"] not in (BASE, ORGANISM) and unscored(row, beliefs, missing)
            said = warning(row, organisms.get(row["seed"]), beliefs, validation, statistics)
            row["warning"] = joined([said, "belief items missing" if unchecked else ""])
        own.sort(key=lambda row: (row["seed"] is not None, row["seed"] or 0, checkpoint_order(row["checkpoint"])))
        rows += own
    return table(rows, SCHEMA)


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = stage.parser(__doc__)
    options.add_argument("--outcomes", type=Path, nargs="*", required=True, help="outcomes of all checkpoints")
    options.add_argument("--beliefs", type=Path, required=True, help="beliefs table (parquet)")
    options.add_argument("--validation", type=Path, help="validation table (parquet), where there is a judge")
    options.add_argument("--output", type=Path, required=True, help="gaps.parquet; gaps.csv goes beside it")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    frame = gaps(
        read(arguments.outcomes, job),
        read([arguments.beliefs], job),
        list(setting(job, "models")),
        setting(job, "tiers"),
        setting(job, "statistics"),
        setting(job, "compliance"),
        read([arguments.validation], job) if arguments.validation else None,
        lacking(job),
    )
    write(frame, arguments.output, job.fingerprint, lacking(job))
