"""Command `transcripts`: list, filter, show and export transcripts, for people.

    python -m perfmis transcripts list   --root results/demo
    python -m perfmis transcripts filter --root results/demo --checkpoint A1+ --outcome accepted --format csv
    python -m perfmis transcripts show   --root results/demo --request r0003 --reveal
    python -m perfmis transcripts export --root results/demo --inspect FOLDER
    python -m perfmis transcripts page   --root results/demo --patterns resources/patterns/tiny.yaml --output FILE

``list`` counts outcomes, a line a checkpoint; ``filter`` gives rows as a table, JSONL, CSV or parquet; ``show``
prints samples in full; ``export`` writes logs that ``inspect view`` opens; ``page`` writes one HTML file. All take
the same filters. What models wrote may be harmful, so ``filter`` and ``show`` give its length instead of the text
unless ``--reveal`` is given. Inspect's logs and the page hold the texts: take care of where you put them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import polars as pl

from perfmis import joined, outcomes, sources
from perfmis.artifacts import read_one
from perfmis.joined import CHOICES, Pair
from perfmis.sources import Sources
from perfmis.stage import UserError
from perfmis.typed import read_yaml

OUTCOMES = ("accepted", "refused", "malformed")
TEXTS = ("raw", "request")
# First what says which sample it is, then what came out.
COLUMNS = (
    "kind",
    "model",
    "seed",
    "checkpoint",
    "protocol",
    "condition",
    "request_id",
    "tier",
    "eval_seed",
    "outcome",
    "parse_status",
    "tag",
    "judge",
    "pattern",
    "reasoning_judge",
    "expectation",
    "consequence",
    "in_training",
    "tokens",
    "finish",
    "characters",
    "sample",
)
FORMATS = ("table", "jsonl", "csv", "parquet")


def found(root: Path) -> list[Pair]:
    """Return the files below a root that have outcomes, and say how many have none yet.

    Raises:
        UserError: There are none.
    """
    everything = joined.pairs(root)
    parsed = [pair for pair in everything if pair.outcomes.exists()]
    if len(parsed) < len(everything):
        print(f"{root}: {len(everything) - len(parsed)} files of transcripts have no outcomes yet", file=sys.stderr)
    if not parsed:
        raise UserError(f"{root}: no transcripts with outcomes; name the study's root with --root, or run it first")
    return parsed


def counted(root: Path, kept: list[pl.Expr]) -> pl.DataFrame:
    """Return the number of samples by outcome: kind, model, seed, checkpoint, protocol, samples and each outcome."""
    columns = ("kind", "model", "seed", "checkpoint", "protocol", "outcome")
    rows = joined.read(found(root), kept, columns)
    keys = list(columns[:-1])
    counts = rows.group_by(keys, maintain_order=True).agg(
        pl.len().alias("samples"), *((pl.col("outcome") == name).sum().alias(name) for name in OUTCOMES)
    )
    order = {name: i for i, name in enumerate(joined.CHECKPOINTS)}
    rank = pl.col("checkpoint").replace_strict(order, default=len(order))
    first = pl.col("kind").replace_strict({"transcripts": 0, "steering": 1, "prompting": 2, "closed": 3})
    return counts.sort(first, "model", "seed", rank, "protocol")


def chosen(root: Path, kept: list[pl.Expr], reveal: bool) -> pl.DataFrame:
    """Return the samples that pass the filters, pairs together; texts only where they are to be revealed."""
    frame = joined.read(found(root), kept)
    frame = joined.ordered(frame).with_columns(characters=pl.col("raw").str.len_chars())
    if not reveal:
        return frame.select(COLUMNS)
    texts = requests_of(root).select("request_id", request="text")
    return frame.join(texts, on="request_id", how="left", maintain_order="left").select(*COLUMNS, *TEXTS)


def requests_of(root: Path) -> pl.DataFrame:
    """Return the study's requests.

    Raises:
        UserError: They cannot be read.
    """
    return read_one(root / "requests" / "requests.parquet")


def study(root: Path, snippets: Path | None = None) -> Sources:
    """Return what the prompts of a study were rendered from."""
    return sources.load(requests_of(root), sorted((root / "protocols").glob("*.json")), snippets)


def table(frame: pl.DataFrame) -> str:
    """Return rows as aligned text; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in frame.iter_rows()]
    widths = [max(map(len, column)) for column in zip(frame.columns, *cells, strict=True)]
    right = [dtype.is_numeric() for dtype in frame.dtypes]
    lines = [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in (frame.columns, *cells)
    ]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    # Line breaks and control characters of a model's text would spoil the table, and might speak to the terminal.
    return "".join(sign if sign.isprintable() else " " for sign in str(value))


def rendered(frame: pl.DataFrame, form: str) -> str:
    """Return rows as a table, JSONL or CSV; lists are joined by semicolons in CSV."""
    if form == "jsonl":
        return frame.write_ndjson()
    if form == "csv":
        lists = [name for name, dtype in frame.schema.items() if dtype == pl.List]
        return frame.with_columns(pl.col(name).list.join(";") for name in lists).write_csv()
    return table(frame)


def give(frame: pl.DataFrame, form: str, output: Path | None) -> None:
    """Print rows, or write them to a file.

    Raises:
        UserError: Parquet is to be printed.
    """
    if output is None:
        if form == "parquet":
            raise UserError("--format parquet: not for a terminal; name a file with --output")
        sys.stdout.write(rendered(frame, form))
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    if form == "parquet":
        frame.write_parquet(output)
    else:
        output.write_text(rendered(frame, form))
    print(f"{output}: {frame.height} rows", file=sys.stderr)


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in text)


def told(row: dict[str, Any]) -> str:
    """Return one sample as text, of which the request and what the model wrote are parts if they were revealed."""
    place = [row["model"], f"seed {row['seed']}", row["checkpoint"], row["protocol"], row["condition"]]
    asked = [f"request {row['request_id']}", row["tier"], f"evaluation seed {row['eval_seed']}"]
    came = [row["outcome"], row["parse_status"], f"{row['tokens']} tokens", row["finish"]]
    if row["judge"]:
        came.append(f"judge: {row['judge']}")
    if row["pattern"]:
        came.append(f"pattern: {', '.join(row['pattern'])}")
    lines = [f"── {row['sample']}", " · ".join(filter(None, place)), " · ".join(asked), " · ".join(came)]
    if "raw" not in row:
        return "\n".join([*lines, f"{row['characters']} characters, hidden; --reveal shows them", ""])
    body = [f"Request: {row['request']}"]
    if row["scratchpad"] is None:
        body += ["Text, in which no reasoning is closed:", row["raw"]]
    else:
        body += ["Scratchpad:", row["scratchpad"], "Answer:", row["answer"]]
    return _printable("\n".join([*lines, *body, ""]))


def show(root: Path, kept: list[pl.Expr], reveal: bool, limit: int) -> None:
    """Print samples in full."""
    frame = chosen(root, kept, reveal)
    print(f"{min(limit, frame.height)} of {frame.height} samples", file=sys.stderr)
    frame = frame.head(limit)
    if reveal:
        frame = outcomes.parse(frame.drop("parse_status", "tag"), study(root).protocols)
    for row in frame.iter_rows(named=True):
        print(told(row))


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("results"), help="root of the study")
    group = parser.add_argument_group("filters (of several values, any)")
    for name in CHOICES:
        number = int if name == "seed" else str
        group.add_argument(f"--{name.replace('_', '-')}", nargs="+", type=number, metavar="VALUE")
    group.add_argument("--pattern", nargs="+", metavar="VALUE", help="what the judge saw in the scratchpad")
    group.add_argument("--request", nargs="+", metavar="ID", help="request ids")
    group.add_argument("--sample", nargs="+", metavar="KEY", help="keys of samples, or how they begin")
    group.add_argument("--text", metavar="REGEX", help="found in what the model wrote; (?i) ignores case")


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="perfmis transcripts", description=__doc__, formatter_class=plain)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    adding = {name: actions.add_parser(name) for name in ("list", "filter", "show", "export", "page")}
    for action in adding.values():
        _filters(action)
    for name in ("list", "filter"):
        adding[name].add_argument("--format", choices=FORMATS, default="table")
        adding[name].add_argument("--output", type=Path, help="file to write; without it, rows are printed")
    for name in ("filter", "show"):
        adding[name].add_argument("--reveal", action="store_true", help="give texts, which may be harmful")
    adding["show"].add_argument("--limit", type=int, default=10, help="the most that are printed")
    adding["export"].add_argument("--inspect", type=Path, required=True, help="folder for logs of Inspect")
    adding["page"].add_argument("--patterns", type=Path, required=True, help="resources/patterns/WORLD.yaml")
    adding["page"].add_argument("--title", default="Transcripts", help="title of the page")
    adding["page"].add_argument("--samples", type=int, default=20_000, help="the most that the page holds")
    adding["page"].add_argument("--output", type=Path, required=True, help="HTML file to write")
    for name in ("export", "page"):
        adding[name].add_argument("--snippets", type=Path, help="resources/snippets/WORLD.yaml, for prompted samples")
    return parser


def _some(frame: pl.DataFrame) -> pl.DataFrame:
    if frame.is_empty():
        raise UserError("no sample passes the filters; loosen them, or see `transcripts list`")
    return frame


def export(arguments: argparse.Namespace, kept: list[pl.Expr]) -> None:
    """Write logs of Inspect."""
    from perfmis import inspect_log

    rows = _some(joined.read(found(arguments.root), kept))
    logs = inspect_log.write(rows, study(arguments.root, arguments.snippets), arguments.inspect)
    print(f"{arguments.inspect}: {len(logs)} logs; open them with: inspect view --log-dir {arguments.inspect}")


def page(arguments: argparse.Namespace, kept: list[pl.Expr]) -> None:
    """Write the page."""
    from perfmis.viewer import page as viewer

    rows, requests = viewer.read(found(arguments.root), kept, arguments.samples)
    poles = outcomes.patterns(read_yaml(arguments.patterns))
    reader = viewer.Reader(study(arguments.root, arguments.snippets), poles, arguments.title)
    viewer.write(reader.page(_some(rows), requests), arguments.output)
    print(arguments.output)


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments = options().parse_args(argv)
    kept = joined.filters(vars(arguments))
    if arguments.action == "list":
        give(counted(arguments.root, kept), arguments.format, arguments.output)
    elif arguments.action == "filter":
        give(chosen(arguments.root, kept, arguments.reveal), arguments.format, arguments.output)
    elif arguments.action == "show":
        show(arguments.root, kept, arguments.reveal, arguments.limit)
    elif arguments.action == "export":
        export(arguments, kept)
    else:
        page(arguments, kept)
