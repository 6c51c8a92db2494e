"""Stage `audit_sample`: transcripts for a person to label, so that a judge can be compared with them.

    python -m perfmis audit_sample --settings JSON --fingerprint HEX --protocols FILES --rubrics FILES
        --requests FILE --transcripts FILES --output sheet.csv

Settings: ``number``, the samples drawn from each checkpoint of each model. They are chosen by the hash of their key,
so that the same samples come again however the files are ordered, and in turn from those whose tag says accepted,
refused and malformed, so that rare outcomes are there too. Drawn is only what a judge would be asked about.

The sheet has one row a sample in an order that mixes checkpoints; it does not name the tier. After ``answer`` it has
one column for each thing that the rubrics measure. Copy the sheet, write yes or no into these columns (n/a where it
cannot be said), save it as comma-separated values and name the copy in the configuration.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from perfmis import protocols, rubrics, stage, tabular
from perfmis.artifacts import read_parquet
from perfmis.materials import materials
from perfmis.outcomes import parse
from perfmis.rubrics import Rubric
from perfmis.stage import UserError

YES, NO, NOT_APPLICABLE = "yes", "no", "n/a"
LABELS = {YES: True, "y": True, "true": True, "1": True, NO: False, "n": False, "false": False, "0": False}
SHOWN = ("sample", "model", "checkpoint", "request", "scratchpad", "answer")


def measures(chosen: Mapping[str, Rubric]) -> list[str]:
    """Return what the rubrics measure, which is what a person is asked for."""
    return [measure for name, rubric in chosen.items() for measure in rubric.measures(name)]


def _hashes(samples: pl.Series) -> pl.Series:
    return pl.Series([hashlib.sha256(f"audit|{sample}".encode()).hexdigest() for sample in samples], dtype=pl.String)


def drawn(samples: pl.DataFrame, number: int) -> pl.DataFrame:
    """Draw samples for each checkpoint of each model.

    Args:
        samples: ``sample``, ``model``, ``checkpoint``, ``tag`` and any other columns, one row a sample.
        number: Samples a checkpoint; all of them where there are fewer.

    Returns:
        The rows drawn, in an order that follows from the keys alone.
    """
    ordered = samples.with_columns(_hash=_hashes(samples["sample"])).sort("_hash")
    checkpoint = ["model", "checkpoint"]
    turn = pl.int_range(pl.len()).over([*checkpoint, "tag"])
    ranked = ordered.with_columns(_turn=turn).sort("_turn", "tag", maintain_order=True)
    first = ranked.group_by(checkpoint, maintain_order=True).head(number)
    return first.sort("_hash").drop("_hash", "_turn")


def sheet(parsed: pl.DataFrame, chosen: Mapping[str, Rubric], number: int) -> pl.DataFrame:
    """Return the rows of the sheet.

    Args:
        parsed: Rows of `perfmis.outcomes.parse`, with ``sample``, ``model``, ``checkpoint`` and ``request``.
        chosen: Rubrics by name.
        number: Samples a checkpoint.
    """
    empty: dict[str, pl.Series] = {}
    for name, rubric in chosen.items():
        asked = [None if material else NOT_APPLICABLE for material in materials(rubric, parsed)]
        empty |= {measure: pl.Series(asked, dtype=pl.String) for measure in rubric.measures(name)}
    labelled = parsed.with_columns(**empty)
    answered = labelled.filter(pl.any_horizontal(pl.col(measure).is_null() for measure in empty))
    return drawn(answered, number).select(*SHOWN, *empty)


def write(frame: pl.DataFrame, output: Path) -> None:
    """Write a sheet as CSV that appears whole or not at all.

    Spreadsheets take cells that begin with certain signs for formulas, and these texts come from models: such cells
    get an apostrophe in front.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    guarded = pl.col(pl.String).str.replace(r"\A([=+\-@\t\r])", "'$1")
    frame.with_columns(guarded).write_csv(partial, include_bom=True)
    os.replace(partial, output)


def label(value: object, where: str) -> bool | None:
    """Return what a cell says, None for n/a.

    Raises:
        UserError: It says neither yes nor no; ``where`` names file, row and column.
    """
    word = str(value if value is not None else "").strip().lower()
    if word == NOT_APPLICABLE:
        return None
    if word not in LABELS:
        raise UserError(f"{where}: {word!r} is no label; write yes, no or n/a")
    return LABELS[word]


def read(path: Path, names: Iterable[str]) -> pl.DataFrame:
    """Return a filled sheet: ``sample`` and a Boolean column for each measure, null for n/a.

    Rows are counted as a spreadsheet does, the header being row 1.

    Raises:
        UserError: The file, a column or a label is missing or wrong, or a sample stands twice.
    """
    try:
        table = tabular.from_csv(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); correct judge.sheet") from error
    columns = ["sample", *names]
    fix = "keep the columns of the sheet, separated by commas"
    frame = pl.DataFrame({name: table.column(name, fix) for name in columns}, schema=dict.fromkeys(columns, pl.String))
    doubled = (~frame["sample"].is_first_distinct()).arg_true()
    if len(doubled):
        raise UserError(f"{path}: row {doubled[0] + 2}, column sample: stood above already; remove one of the rows")
    read_labels = {
        name: [label(cell, f"{path}: row {row}, column {name}") for row, cell in enumerate(frame[name], 2)]
        for name in columns[1:]
    }
    return frame.select("sample").with_columns(
        pl.Series(name, values, pl.Boolean) for name, values in read_labels.items()
    )


def main(argv: list[str]) -> None:
    """Write the sheet."""
    options = stage.parser(__doc__ or "")
    options.add_argument("--protocols", required=True, nargs="+", type=Path, help="files named NAME.yaml or .json")
    options.add_argument("--rubrics", required=True, nargs="+", type=Path, help="YAML files, named NAME.yaml")
    options.add_argument("--requests", required=True, type=Path, help="requests.parquet")
    options.add_argument("--transcripts", required=True, nargs="+", type=Path, help="parquet files with raw samples")
    options.add_argument("--output", required=True, type=Path, help="CSV file")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    known = {path.stem: protocols.load(path) for path in arguments.protocols}
    samples = read_parquet(arguments.transcripts, job.upstream).unique("sample", keep="first", maintain_order=True)
    texts = read_parquet([arguments.requests], job.upstream).select("request_id", request="text")
    parsed = parse(samples, known).join(texts, on="request_id", how="left", maintain_order="left")
    write(sheet(parsed, rubrics.load(arguments.rubrics), job.settings["number"]), arguments.output)
