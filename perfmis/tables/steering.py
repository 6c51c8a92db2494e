"""Stage `tables.steering`: compliance, gap and scratchpads of every steered run.

    python -m perfmis tables.steering --settings JSON --fingerprint HEX
        --outcomes FILE... --output steering.parquet

Writes steering.parquet and steering.csv: one row per model, training seed (null: pooled), concept, context,
coefficient and control (null: the real vector, else the number of a random vector of the same norm).
Compliance, gap and change are percentages or percentage points with their bounds; rates and ``malformed`` are
shares 0..1. ``change`` is the gap minus that at coefficient 0 of the same concept and context, paired. ``warning``
says of a row what its answers give reason to doubt (`perfmis.tables.warnings`); a vector (not a random one) that
moves nothing that is read is *not tested*.
Settings: ``statistics``, ``models``.
"""

from pathlib import Path
from typing import Any

import polars as pl

from perfmis import stage
from perfmis.tables.cells import MEASURES, Replicates, build
from perfmis.tables.common import Row, bounded, by_seed, joined, lacking, of_models, read, setting, table, write
from perfmis.tables.warnings import as_without, malformed, still

KEYS = ("concept", "context", "alpha", "control")
SCHEMA: dict[str, Any] = {
    "model": pl.String,
    "seed": pl.Int64,
    "concept": pl.String,
    "context": pl.String,
    "alpha": pl.Float64,
    "control": pl.Int64,
    **dict.fromkeys(("seeds", "n", "samples"), pl.Int64),
    **MEASURES,
    **dict.fromkeys(("change", "change_low", "change_high"), pl.Float64),
    "warning": pl.String,
}


def rows_of_model(outcomes: pl.DataFrame, statistics: Row) -> list[Row]:
    """Return the rows of one model: pooled over training seeds, and per training seed."""
    result = []
    confidence = statistics["confidence"]
    for seed, chosen in by_seed(outcomes):
        cells = build(chosen, KEYS)
        replicates = Replicates(cells, statistics["resamples"], statistics["seed"])
        same = as_without(chosen, KEYS, pl.col("alpha") != 0, ["concept", "context"], "the unsteered organism's")
        real = chosen.filter(pl.col("control").is_null())
        unmoved = still(real, KEYS, pl.col("alpha") != 0, ["concept", "context"])
        for key, seeds, samples in zip(cells.keys, cells.seeds, cells.samples, strict=True):
            change = replicates.gap(*key) - replicates.gap(*key[:2], 0.0, None)
            row = {"model": outcomes["model"][0], "seed": seed, **dict(zip(KEYS, key, strict=True))}
            row |= {"seeds": seeds, "n": cells.prompts, "samples": samples}
            untested = f"not tested: {unmoved[key]}" if key in unmoved else ""
            row["warning"] = joined([untested, malformed(replicates, key, statistics), same.get(key, "")])
            result.append(row | replicates.measured(key, confidence) | bounded("change", change, confidence))
    return result


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = stage.parser(__doc__)
    options.add_argument("--outcomes", type=Path, nargs="*", required=True, help="outcomes of steered runs")
    options.add_argument("--output", type=Path, required=True, help="steering.parquet; steering.csv goes beside it")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    outcomes = read(arguments.outcomes, job)
    rows: list[Row] = []
    for _, chosen in of_models(outcomes, setting(job, "models")):
        rows += rows_of_model(chosen, setting(job, "statistics"))
    write(table(rows, SCHEMA), arguments.output, job.fingerprint, lacking(job))
