"""What the figure stages share: their options and the rows that they draw."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from perfmis import stage
from perfmis.artifacts import read_parquet
from perfmis.tables.common import MISSING, present

Row = dict[str, Any]


class Inputs:
    """The settings and tables of a figure stage.

    Attributes:
        settings: The job's settings: ``statistics``, ``models``, ``arms``, ``tiers``, ``minimum_gap``.
        output: The PDF to write; PNG and SVG go beside it.
    """

    def __init__(self, argv: list[str], description: str | None, tables: Sequence[str] = ()) -> None:
        """Parse the options of a stage with one option per table, and read the tables."""
        options = stage.parser(description or "")
        for name in tables:
            options.add_argument(f"--{name}", type=Path, required=True, help=f"the {name} table (parquet)")
        options.add_argument("--output", type=Path, required=True, help="PDF; PNG and SVG go beside it")
        arguments = vars(options.parse_args(argv))
        job = stage.job(Namespace(**arguments))
        self.settings = job.settings
        self.fingerprint = job.fingerprint
        self.output: Path = arguments["output"]
        found = {name: read_parquet([arguments[name]], job.upstream) for name in tables}
        self._tables = {name: present(table) for name, table in found.items()}
        self._missing = [
            row for table in found.values() if MISSING in table.columns for row in table.drop_nulls(MISSING).to_dicts()
        ]

    def table(self, name: str) -> pl.DataFrame:
        """Return one of the tables."""
        return self._tables[name]

    def pooled(self, name: str) -> pl.DataFrame:
        """Return the rows of a table that are pooled over training seeds."""
        return self._tables[name].filter(pl.col("seed").is_null())

    def models_of(self, frame: pl.DataFrame) -> list[str]:
        """Return the models of a frame in the order of the settings."""
        present = set(frame["model"])
        return [model for model in self.settings["models"] if model in present]

    @property
    def missing(self) -> str:
        """The sentence that names what the tables lack; empty where they lack nothing."""
        named: dict[str, list[str]] = {}
        for row in self._missing:
            what = row[MISSING].split(": ", 1)[0]
            own = named.setdefault(row["model"], [])
            own += [what] if what not in own else []
        if not named:
            return ""
        listed = ", ".join(f"{model} ({'; '.join(own)})" for model, own in named.items())
        return f"Missing, since jobs failed (see the tables): {listed}."

    @property
    def confidence(self) -> float:
        """Confidence of the intervals."""
        return float(self.settings["statistics"]["confidence"])


def only(frame: pl.DataFrame, **where: Any) -> list[Row]:
    """Return the rows in which columns have the given values (None: null)."""
    for name, value in where.items():
        frame = frame.filter(pl.col(name).is_null() if value is None else pl.col(name) == value)
    return frame.to_dicts()
