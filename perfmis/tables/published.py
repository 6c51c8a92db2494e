"""Stage `tables.published`: published numbers beside those measured here.

    python -m perfmis tables.published --settings JSON --fingerprint HEX
        --source resources/published.csv [--gaps TABLE --profiles TABLE] --output published.parquet

Writes published.parquet and published.csv: the rows of ``resources/published.csv`` with the name that a study
gives to the model (``key``: lower case) and, where the study measured the same quantity, ``measured`` with
bounds, and ``difference`` (measured minus published). Published gaps of a pole (``A+``) are means over both
contents; measured means of that kind have no bounds, since the bounds of arms do not add up to them.
Settings: none.
"""

from pathlib import Path
from typing import Any

import polars as pl

from perfmis import stage
from perfmis.stage import UserError
from perfmis.tables.common import Row, read, table, write
from perfmis.vocabulary import CONTENTS, ORGANISM

FACTS: dict[str, Any] = {
    **dict.fromkeys(("source", "figure", "model", "method", "condition"), pl.String),
    "alpha": pl.Float64,
    "quantity": pl.String,
    "value": pl.Float64,
    **dict.fromkeys(("unit", "note"), pl.String),
}
SCHEMA: dict[str, Any] = {
    **FACTS,
    "key": pl.String,
    **dict.fromkeys(("measured", "measured_low", "measured_high", "difference"), pl.Float64),
}
GAP_COLUMNS = ("gap", "compliance_monitored", "compliance_unmonitored")
METHODS = {"SDF": "sdf", "prompt": "prompting"}


def read_published(path: Path) -> pl.DataFrame:
    """Return the published numbers.

    Raises:
        UserError: The file is missing or has other columns.
    """
    try:
        facts = pl.read_csv(path, schema_overrides=FACTS)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it from the repository") from error
    if facts.columns != list(FACTS):
        raise UserError(f"{path}: columns are {', '.join(facts.columns)}; they must be {', '.join(FACTS)}")
    return facts


def checkpoints(condition: str) -> tuple[str, ...]:
    """Return the checkpoints that a published condition averages over."""
    if condition == "baseline":
        return (ORGANISM,)
    if condition[1:] in ("+", "-"):
        return tuple(f"{condition[0]}{content}{condition[1]}" for content in CONTENTS)
    return (condition,)


def _bounds(quantity: str) -> tuple[str, str]:
    return ("low", "high") if quantity == "gap" else (f"{quantity}_low", f"{quantity}_high")


def measured(fact: Row, gaps: pl.DataFrame, profiles: pl.DataFrame) -> Row:
    """Return the study's own value of a published quantity, or an empty row."""
    quantity = fact["quantity"]
    if quantity == "b_fraction" and not profiles.is_empty():
        found = profiles.filter(pl.col("method") == METHODS.get(fact["method"]))
    elif quantity in GAP_COLUMNS and fact["method"] == "SDF" and not gaps.is_empty():
        wanted = checkpoints(fact["condition"])
        found = gaps.filter(pl.col("seed").is_null() & pl.col("checkpoint").is_in(wanted))
        if found.height < len(wanted):
            return {}
    else:
        return {}
    if found.is_empty() or found[quantity].null_count():
        return {}
    value = float(found[quantity].to_numpy().mean())
    row: Row = {"measured": value, "difference": value - fact["value"]}
    if found.height == 1:
        low, high = _bounds(quantity)
        row |= {"measured_low": found[low][0], "measured_high": found[high][0]}
    return row


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = stage.parser(__doc__)
    options.add_argument("--source", type=Path, required=True, help="resources/published.csv")
    options.add_argument("--gaps", type=Path, nargs="*", default=[], help="gaps table (parquet)")
    options.add_argument("--profiles", type=Path, nargs="*", default=[], help="profiles table (parquet)")
    options.add_argument("--output", type=Path, required=True, help="published.parquet; CSV goes beside it")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    gaps, profiles = read(arguments.gaps, job), read(arguments.profiles, job)
    rows = []
    for fact in read_published(arguments.source).iter_rows(named=True):
        key = None if fact["model"] is None else fact["model"].lower()
        own = pl.col("model").eq_missing(pl.lit(key))
        rows.append(fact | {"key": key} | measured(fact, gaps.filter(own), profiles.filter(own)))
    write(table(rows, SCHEMA), arguments.output, job.fingerprint)
