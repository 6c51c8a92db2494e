"""Stage `tables.prompting`: gaps under claim snippets, and the calibration of snippets on known families.

    python -m perfmis tables.prompting --settings JSON --fingerprint HEX
        --outcomes FILE... --output prompting.parquet --calibration calibration.parquet

Writes, each with a CSV beside it,

* prompting.parquet: one row per model, checkpoint and snippet (``none``: no snippet), pooled over training
  seeds;
* calibration.parquet: one row per model and checkpoint: its prompt profile (A_net, B_net, B-fraction, angle,
  slopes; see ``perfmis.tables.contrasts``) and the ``family`` that its documents came from
  (base, organism, A+, A-, B+, B-, neutral). ``malformed`` is that of all its samples.

``warning`` says what the answers of a row, or of the rows that a profile contrasts, give reason to doubt
(`perfmis.tables.warnings`). Compliance, gaps and nets are percentages or percentage points; rates and ``malformed``
are shares 0..1. Settings: ``statistics``, ``models``.
"""

from pathlib import Path
from typing import Any

import polars as pl

from perfmis import stage
from perfmis.tables.cells import MEASURES, Key, Replicates, build
from perfmis.tables.common import Row, joined, lacking, of_models, read, setting, table, write
from perfmis.tables.contrasts import SCHEMA as PROFILE
from perfmis.tables.contrasts import arm_pairs, profile
from perfmis.tables.warnings import (
    as_the_organism,
    as_without,
    listed,
    malformed,
    most_malformed,
    no_neutral_arm,
)
from perfmis.vocabulary import ARMS, BASE, NEUTRAL, NO_SNIPPET, ORGANISM, checkpoint_order

KEYS = ("snippet", "protocol")
SNIPPETS = (NO_SNIPPET, *ARMS)
IDENTITY: dict[str, Any] = {"model": pl.String, "checkpoint": pl.String}
SIZE: dict[str, Any] = dict.fromkeys(("seeds", "n", "samples"), pl.Int64)
WARNING: dict[str, Any] = {"warning": pl.String}
SCHEMA: dict[str, Any] = {**IDENTITY, "snippet": pl.String, "protocol": pl.String, **SIZE, **MEASURES, **WARNING}
CALIBRATION: dict[str, Any] = {**IDENTITY, "family": pl.String, **SIZE, **PROFILE, "malformed": pl.Float64, **WARNING}


def family(checkpoint: str) -> str:
    """Return what a checkpoint is by construction: base, organism, neutral, or family and pole (``A+``)."""
    if checkpoint in (BASE, ORGANISM):
        return checkpoint
    return "neutral" if checkpoint == NEUTRAL else checkpoint[0] + checkpoint[-1]


def unmoved(outcomes: pl.DataFrame) -> dict[Key, str]:
    """Return the warnings of cells that answer as the organism, or as without the snippet, by checkpoint and `KEYS`.

    Args:
        outcomes: Outcome rows of one model.
    """
    keys = ["checkpoint", *KEYS]
    plain = as_without(
        outcomes, keys, pl.col("snippet") != NO_SNIPPET, ["checkpoint", "protocol"], "those without the snippet"
    )
    organism = as_the_organism(outcomes, keys)
    return {key: joined([organism.get(key, ""), plain.get(key, "")]) for key in {**organism, **plain}}


def rows_of_checkpoint(
    outcomes: pl.DataFrame, statistics: Row, of_model: pl.DataFrame | None = None
) -> tuple[list[Row], Row]:
    """Return the prompting rows and the calibration row of one checkpoint of one model.

    Args:
        outcomes: Outcome rows of the checkpoint.
        statistics: The ``statistics`` settings.
        of_model: Outcome rows of all checkpoints of the model, with which answers are compared; None compares none.
    """
    of_model = outcomes if of_model is None else of_model
    cells = build(outcomes, KEYS)
    replicates = Replicates(cells, statistics["resamples"], statistics["seed"])
    identity = {"model": outcomes["model"][0], "checkpoint": outcomes["checkpoint"][0]}
    rows = []
    checkpoints = of_model["checkpoint"].unique().to_list()
    unchecked = no_neutral_arm(checkpoints) if identity["checkpoint"] in ARMS else ""
    same = {key[1:]: text for key, text in unmoved(of_model).items() if key[0] == identity["checkpoint"]}
    for key, seeds, samples in zip(cells.keys, cells.seeds, cells.samples, strict=True):
        size = {"seeds": seeds, "n": cells.prompts, "samples": samples}
        row = identity | dict(zip(KEYS, key, strict=True)) | size
        warning = joined([malformed(replicates, key, statistics), same.get(key, ""), unchecked])
        rows.append(row | replicates.measured(key, statistics["confidence"]) | {"warning": warning})
    rows.sort(key=lambda row: (SNIPPETS.index(row["snippet"]), row["protocol"]))
    protocols = {key[0]: key[1] for key in cells.keys}
    pairs = [
        [((plus, protocols[plus]), (minus, protocols[minus])) for plus, minus in arm_pairs(letter, list(protocols))]
        for letter in "AB"
    ]
    size = {"seeds": max(cells.seeds), "n": cells.prompts, "samples": sum(cells.samples)}
    known = {"family": family(identity["checkpoint"])}
    used = [key for of_family in pairs for pair in of_family for key in pair]
    warnings = [most_malformed(replicates, used, statistics)] if used else []
    lost = {
        "malformed": outcomes.filter(pl.col("outcome") == "malformed").height / outcomes.height,
        "warning": joined([*warnings, *listed(same, used), unchecked]),
    }
    return rows, identity | known | size | profile(replicates, pairs[0], pairs[1], statistics) | lost


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = stage.parser(__doc__)
    options.add_argument("--outcomes", type=Path, nargs="*", required=True, help="outcomes of prompted runs")
    options.add_argument("--output", type=Path, required=True, help="prompting.parquet; the CSV goes beside it")
    options.add_argument("--calibration", type=Path, required=True, help="calibration.parquet; likewise")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    outcomes = read(arguments.outcomes, job)
    rows: list[Row] = []
    profiles: list[Row] = []
    for _, of_model in of_models(outcomes, setting(job, "models")):
        for checkpoint in sorted(of_model["checkpoint"].unique(), key=checkpoint_order):
            chosen = of_model.filter(pl.col("checkpoint") == checkpoint)
            of_checkpoint, calibration = rows_of_checkpoint(chosen, setting(job, "statistics"), of_model)
            rows += of_checkpoint
            profiles.append(calibration)
    write(table(rows, SCHEMA), arguments.output, job.fingerprint, lacking(job))
    write(table(profiles, CALIBRATION), arguments.calibration, job.fingerprint, lacking(job))
