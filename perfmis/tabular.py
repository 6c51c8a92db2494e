"""Tables that users bring: CSV, JSON lines or parquet, from a file or from a data set of the hub, read alike.

A cell is what the file says: text in CSV, what JSON has in JSON, what the schema says in parquet. The package datasets
finds a data set's files at its commit, and they are read here, since its own readers guess: numbers lose their leading
zeros, ``NA`` becomes nothing, texts that look like dates become times, and a column of mixed types becomes Json.
"""

import csv
import datetime
import decimal
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from perfmis.encoding import decoded
from perfmis.stage import UserError

CELL_LIMIT = 2**31 - 1  # characters of a CSV cell; the module csv allows 131,072 unless told otherwise


@dataclass(frozen=True)
class Table:
    """Rows of a user's table.

    Attributes:
        where: What errors call it: the key of the configuration, and the file or data set.
        columns: Cells by name; all columns are equally long.
        height: Number of rows.
    """

    where: str
    columns: Mapping[str, Iterable[Any]]
    height: int

    def column(self, name: str, fix: str) -> list[Any]:
        """Return a column's cells.

        Raises:
            UserError: There is none of this name; ``fix`` says what to do.
        """
        if name not in self.columns:
            raise UserError(f"{self.where}: no column {name!r}; {fix}")
        return list(self.columns[name])


def from_csv(content: bytes, where: str, delimiter: str = ",") -> Table:
    """Read comma-separated values: a line of names, then as many cells in every row (RFC 4180).

    Blank lines are passed over. A quote may stand only around a cell, or doubled in a cell with quotes around it: other
    quotes are read in different ways by different readers, some of which join rows.

    Raises:
        UserError: Names the line: of a stray quote, a cell too many or too few, a name that stands twice.
    """
    csv.field_size_limit(CELL_LIMIT)
    names: list[str] = []
    rows: list[list[str]] = []
    for line, row in _records(decoded(content, where), where, delimiter):
        if not names:
            names = row
            if doubled := [name for name in names if name and names.count(name) > 1]:
                raise UserError(f"{where}: line {line}: the column {doubled[0]!r} stands twice; rename one")
        elif len(row) != len(names):
            number = f"{len(row)} cell{'s' * (len(row) != 1)}, but {len(names)} column{'s' * (len(names) != 1)}"
            raise UserError(f"{where}: line {line}: {number}; put cells with {delimiter!r} in them between quotes")
        else:
            rows.append(row)
    if not names:
        raise UserError(f"{where}: is empty; write comma-separated values with a line of column names")
    return Table(where, {name: [row[i] for row in rows] for i, name in enumerate(names)}, len(rows))


def _records(text: str, where: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of CSV that are not blank, each with the number of its first line."""
    comma = re.escape(delimiter)
    quoted = re.compile(rf'(?:\A|(?<={comma}))"[^"]*(?:""[^"]*)*"(?={comma}|[\r\n]*\Z)')
    raw: list[str] = []

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            raw.append(line)
            yield line

    def stray(line: int) -> UserError:
        return UserError(f"{where}: line {line}: a stray quote; put quotes around the cell and double those inside it")

    reader, line = csv.reader(lines(), delimiter=delimiter, strict=True), 1
    while True:
        raw.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise stray(line) from error
        if any('"' in cell for cell in row) and '"' in quoted.sub("", "".join(raw)):
            raise stray(line)
        if row:
            yield line, row
        line = reader.line_num + 1


def from_json(content: bytes, where: str) -> Table:
    """Read JSON lines, or a JSON list of objects.

    Raises:
        UserError: Names the line that is no JSON object.
    """
    text = decoded(content, where)
    if text.lstrip().startswith("["):
        try:
            records = list(enumerate(json.loads(text), 1))
        except ValueError as error:
            raise UserError(f"{where}: line {getattr(error, 'lineno', 1)}: is not JSON; correct it") from error
    else:
        records = [
            (line, _parsed(part, f"{where}: line {line}"))
            for line, part in enumerate(text.split("\n"), 1)
            if part.strip()
        ]
    for line, record in records:
        if not isinstance(record, dict):
            raise UserError(f'{where}: line {line}: is no JSON object; write one a line, such as {{"text": "..."}}')
    names = dict.fromkeys(chain.from_iterable(record for _, record in records))
    return Table(where, {name: [record.get(name) for _, record in records] for name in names}, len(records))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON; correct it") from error


def from_parquet(path: Path, where: str) -> Table:
    """Read parquet; columns that the package datasets stored as JSON are parsed.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{where}: cannot be read as parquet ({str(error).splitlines()[0]}); correct it") from error
    columns: dict[str, Iterable[Any]] = {}
    for series in frame.iter_columns():
        columns[series.name] = series
        if isinstance(series.dtype, pl.BaseExtension) and series.dtype.ext_name() == "arrow.json":
            columns[series.name] = [_unpacked(cell) for cell in series.ext.storage()]
    return Table(where, columns, frame.height)


def _unpacked(cell: str | None) -> Any:
    """Return a cell that datasets stored as JSON; it leaves texts such as 007, which are none, as they are."""
    try:
        return None if cell is None else json.loads(cell)
    except ValueError:
        return cell


def from_path(path: Path, where: str) -> Table:
    """Read a file by its ending: csv, tsv, json, jsonl, ndjson; any other is parquet.

    Raises:
        UserError: It cannot be read.
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending not in ("csv", "tsv", "json", "jsonl", "ndjson"):
        return from_parquet(path, where)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error}); correct the path") from error
    if ending in ("csv", "tsv"):
        return from_csv(content, where, "\t" if ending == "tsv" else ",")
    return from_json(content, where)


def from_hub(location: str, revision: str | None, split: str, where: str) -> Table:
    """Read the files of a data set's split, at a commit.

    Raises:
        UserError: There is none, no such split, or files of another kind.
    """
    from datasets import DownloadManager, load_dataset_builder

    try:
        builder: Any = load_dataset_builder(location, revision=revision)
        splits = {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}
        if split not in splits:
            raise UserError(f"{where}: no split {split!r}; use one of {', '.join(splits)}")
        manager = DownloadManager()
        paths = [
            (Path(path), name.rsplit("/", 1)[-1])
            for name in splits[split]
            for path in manager.iter_files([manager.download_and_extract(name)])
        ]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{where} at {revision}: cannot be loaded ({str(error).splitlines()[0]}); correct location and revision"
        ) from error
    tables = [_of_kind(builder, path, f"{where}: {name}" if len(paths) > 1 else where) for path, name in paths]
    names = dict.fromkeys(chain.from_iterable(table.columns for table in tables))
    columns = {
        name: list(chain.from_iterable(table.columns.get(name, [None] * table.height) for table in tables))
        for name in names
    }
    return Table(where, columns, sum(table.height for table in tables))


def _of_kind(builder: Any, path: Path, where: str) -> Table:
    """Read a file of a data set, whose kind the package datasets has told."""
    match builder.name:
        case "csv":
            return from_csv(path.read_bytes(), where, builder.config.sep)
        case "json":
            return from_json(path.read_bytes(), where)
        case "parquet":
            return from_parquet(path, where)
        case kind:
            raise UserError(f"{where}: is kept as {kind}; save its rows as parquet and set source: path")


def is_blank(cell: Any) -> bool:
    """Say whether a cell has nothing in it; CSV cannot tell an empty text from none."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def kind(cell: Any) -> str:
    """Return what a cell holds, in words."""
    match cell:
        case _ if is_blank(cell):
            return "nothing"
        case str():
            return "text"
        case bool():
            return "true or false"
        case int() | float() | decimal.Decimal():
            return "a number"
        case datetime.date() | datetime.time() | datetime.timedelta():
            return "a date or time"
        case list() | pl.Series():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "bytes"


def text(cell: Any, where: str) -> str:
    """Return a cell as text: empty where it has nothing in it, numbers and dates as they are written.

    Raises:
        UserError: It is a list, an object, bytes, or text that UTF-8 cannot hold.
    """
    if kind(cell) in ("a list", "an object", "bytes"):
        raise UserError(f"{where}: {kind(cell)}, not text; write it as text")
    written = "" if cell is None else str(cell).lower() if isinstance(cell, bool) else str(cell)
    try:
        written.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a character ({written[error.start]!r}); remove it") from error
    return written


def documents(table: Table, name: str) -> list[str]:
    """Return a column in which every cell must be a text.

    Raises:
        UserError: Names the first row, counted from 1, that has none.
    """
    made = []
    for row, cell in enumerate(table.column(name, "add it"), 1):
        where = f"{table.where}: row {row}, column {name}"
        if kind(cell) != "text":
            raise UserError(f"{where}: {kind(cell)}, not text; write a text there or remove the row")
        made.append(text(cell, where))
    return made
