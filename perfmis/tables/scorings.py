"""Stage `tables.scorings`: the gap of every checkpoint by the reply's own tag, by the judge, and by both.

    python -m perfmis tables.scorings --settings JSON --fingerprint HEX
        --outcomes FILE... --validation TABLE --output scorings.parquet

Writes scorings.parquet and scorings.csv: one row per model, training seed (null: pooled), checkpoint and scoring, with
the columns of the table of gaps that rest on outcomes. ``scoring`` is tag, judge, and (both accept) or or (either
does); how missing and malformed answers count is said in `perfmis.outcomes`. A row that rests on the judge carries a
warning where people's labels do not support it. Settings: those of `tables.gaps`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import polars as pl

from perfmis import stage
from perfmis.outcomes import Rule, compliance
from perfmis.tables.common import Row, doubt, joined, lacking, of_models, read, setting, table, write
from perfmis.tables.gaps import SCHEMA, rows_of_model
from perfmis.vocabulary import checkpoint_order

RULES: tuple[Rule, ...] = get_args(Rule)


def scorings(
    outcomes: pl.DataFrame,
    validation: pl.DataFrame,
    models: list[str],
    tiers: list[str],
    statistics: Row,
    missing: Sequence[Row] = (),
) -> pl.DataFrame:
    """Return the table.

    Args:
        outcomes: Outcome rows of all checkpoints of all models, with ``tag`` and ``judge``.
        validation: Agreement of the judge with people.
        models: Models in the order of the table.
        tiers: Tiers that were run.
        statistics: The ``statistics`` settings.
        missing: What failed jobs have taken, see `perfmis.tables.common.lacking`.
    """
    rows: list[Row] = []
    for model, chosen in of_models(outcomes, models):
        for rule in RULES:
            own = rows_of_model(chosen.with_columns(outcome=compliance(rule)), tiers, statistics, rule, missing)
            for row in own:
                warning = "" if rule == "tag" else doubt(validation, model, row["checkpoint"])
                row["warning"] = joined([row["warning"], warning])
            rows += own
    rows.sort(
        key=lambda row: (
            models.index(row["model"]),
            row["seed"] is not None,
            row["seed"] or 0,
            checkpoint_order(row["checkpoint"]),
            RULES.index(row["scoring"]),
        )
    )
    return table(rows, SCHEMA)


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = stage.parser(__doc__)
    options.add_argument("--outcomes", type=Path, nargs="*", required=True, help="outcomes of all checkpoints")
    options.add_argument("--validation", type=Path, required=True, help="validation table (parquet)")
    options.add_argument("--output", type=Path, required=True, help="scorings.parquet; scorings.csv goes beside it")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    frame = scorings(
        read(arguments.outcomes, job),
        read([arguments.validation], job),
        list(setting(job, "models")),
        setting(job, "tiers"),
        setting(job, "statistics"),
        lacking(job),
    )
    write(frame, arguments.output, job.fingerprint, lacking(job))
