"""Stage `tables.beliefs`: what every checkpoint believes, and whether the manipulation did its work.

    python -m perfmis tables.beliefs --settings JSON --fingerprint HEX
        --beliefs FILE... --output beliefs.parquet

Writes beliefs.parquet and beliefs.csv: one row per model, training seed (null: pooled), checkpoint, belief
and item content (null: all items). ``probability`` is the mean probability of the + option, 0..1; intervals
resample training seeds and items. Two checks: ``moved``, on the belief that an arm plants: the + arm lies at
least the setting ``moved`` above the - arm (both arms carry the verdict); ``kept``, on the monitoring belief
of every arm: at least the share ``kept`` of the organism's. ``note`` says what the check saw. Settings:
``statistics``, ``models``.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from perfmis import stage
from perfmis.stage import UserError
from perfmis.statistics import interval, replicate_means
from perfmis.tables.common import Row, by_seed, lacking, of_models, read, setting, table, write
from perfmis.vocabulary import BASE, FAMILY_CONCEPT, NEUTRAL, ORGANISM, checkpoint_order, opposite

SCHEMA: dict[str, Any] = {
    "model": pl.String,
    "seed": pl.Int64,
    "checkpoint": pl.String,
    "belief": pl.String,
    "content": pl.Int64,
    **dict.fromkeys(("probability", "low", "high"), pl.Float64),
    "items": pl.Int64,
    "moved": pl.Boolean,
    "kept": pl.Boolean,
    "note": pl.String,
}
BELIEFS = ("monitoring", "expectation", "consequence")


def _mean(answers: pl.DataFrame, statistics: Row) -> Row:
    """Return mean and interval of one checkpoint's probabilities of one group of items."""
    wide = answers.pivot("item_id", index="seed", values="probability", aggregate_function="mean").drop("seed")
    values = wide.to_numpy()
    if np.isnan(values).any():
        first = answers.row(0, named=True)
        raise UserError(f"beliefs of {first['model']}/{first['checkpoint']}: items differ between seeds; rerun them")
    replicates = replicate_means(values, np.arange(values.shape[1]), statistics["resamples"], statistics["seed"])
    low, high = interval(replicates, statistics["confidence"])
    return {"probability": float(replicates[0]), "low": low, "high": high, "items": values.shape[1]}


def _groups(answers: pl.DataFrame) -> list[tuple[str, int | None, pl.DataFrame]]:
    """Return (belief, content, rows): all items of each belief, then those of either content."""
    result: list[tuple[str, int | None, pl.DataFrame]] = []
    for belief in BELIEFS:
        of_belief = answers.filter(pl.col("belief") == belief)
        if of_belief.is_empty():
            continue
        result.append((belief, None, of_belief))
        for content in sorted(of_belief["content"].drop_nulls().unique()):
            result.append((belief, content, of_belief.filter(pl.col("content") == content)))
    return result


def _check(row: Row, probabilities: dict[tuple[str, str, int | None], float], statistics: Row) -> Row:
    """Return the verdicts that apply to a row, and what they rest on."""
    checkpoint, belief, content = row["checkpoint"], row["belief"], row["content"]
    verdict: Row = {"moved": None, "kept": None, "note": ""}
    if checkpoint in (BASE, ORGANISM):
        return verdict
    before = probabilities.get((ORGANISM, belief, content))
    if belief == "monitoring":
        if before is not None:
            verdict["kept"] = row["probability"] >= statistics["kept"] * before
            verdict["note"] = f"organism {before:.2f}"
    elif checkpoint == NEUTRAL:
        if before is not None:
            verdict["note"] = f"neutral, organism {before:.2f}"
    elif FAMILY_CONCEPT[checkpoint[0]] == belief and content in (None, int(checkpoint[1])):
        other = probabilities.get((opposite(checkpoint), belief, content))
        if other is not None:
            contrast = (row["probability"] - other) * (1 if checkpoint.endswith("+") else -1)
            verdict["moved"] = contrast >= statistics["moved"]
            verdict["note"] = f"+ minus - {contrast:+.2f}"
    return verdict


def rows_of_model(answers: pl.DataFrame, statistics: Row) -> list[Row]:
    """Return the rows of one model: pooled over training seeds, and per training seed."""
    result = []
    for seed, chosen in by_seed(answers):
        rows = []
        for checkpoint in sorted(chosen["checkpoint"].unique(), key=checkpoint_order):
            for belief, content, group in _groups(chosen.filter(pl.col("checkpoint") == checkpoint)):
                identity = {"model": answers["model"][0], "seed": seed, "checkpoint": checkpoint}
                rows.append(identity | {"belief": belief, "content": content} | _mean(group, statistics))
        probabilities = {(row["checkpoint"], row["belief"], row["content"]): row["probability"] for row in rows}
        result += [row | _check(row, probabilities, statistics) for row in rows]
    return result


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = stage.parser(__doc__)
    options.add_argument("--beliefs", type=Path, nargs="*", required=True, help="answers to the belief items")
    options.add_argument("--output", type=Path, required=True, help="beliefs.parquet; beliefs.csv goes beside it")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    answers = read(arguments.beliefs, job)
    statistics = setting(job, "statistics")
    rows: list[Row] = []
    for _, chosen in of_models(answers, setting(job, "models")):
        rows += rows_of_model(chosen, statistics)
    write(table(rows, SCHEMA), arguments.output, job.fingerprint, lacking(job))
