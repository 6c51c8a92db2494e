"""What the page holds: columns to list and filter by, and texts in chunks that are unpacked when they are read."""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from perfmis import outcomes
from perfmis.joined import PAIR, ordered
from perfmis.outcomes import Poles
from perfmis.sources import Sources
from perfmis.viewer.marks import marks, units
from perfmis.vocabulary import MONITORED, UNMONITORED

TIERS = (MONITORED, UNMONITORED, "rated")
# Few enough to unpack within a frame of the screen, many enough to compress well.
CHUNK = 64
# Stands for the request in a rendered prompt; no prompt has a private character of its own.
REQUEST = "\ue000"
LISTED = ("model", "seed", "checkpoint", "protocol", "condition", "request_id", "eval_seed")
CODED = ("outcome", "tag", "judge", "parse_status", "finish")
PLAIN = ("sample", "tokens", "expectation", "consequence", "in_training", "reasoning_judge")


def packed(content: Any) -> str:
    """Return JSON as compressed base64, which no text can break out of."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # The time stamp of gzip would make equal pages differ.
    return base64.b64encode(gzip.compress(text.encode("utf-8"), 6, mtime=0)).decode()


def limited(requests: pl.Series, samples: int) -> list[str]:
    """Return as many requests as have at most so many samples; at least one.

    They are taken in the order of their hashes, so that what is left out depends on no result.

    Args:
        requests: Request id of each sample.
        samples: The most that are wanted.
    """
    counts = requests.value_counts().rows()
    kept: list[str] = []
    total = 0
    for request, number in sorted(counts, key=lambda row: hashlib.sha256(row[0].encode()).digest()):
        total += number
        if kept and total > samples:
            break
        kept.append(request)
    return kept


def prompts(frame: pl.DataFrame, sources: Sources) -> dict[str, list[tuple[str, str]]]:
    """Return each kind of prompt as (role, text) turns with a private character in place of the request."""
    kinds = frame.select("protocol", "snippet", "condition", "tier").unique(maintain_order=True).to_dicts()
    result = {}
    for kind in kinds:
        prompt = sources.prompt(kind["protocol"], REQUEST, kind["tier"], kind["snippet"])
        turns = [("prompt", prompt)] if isinstance(prompt, str) else [(t["role"], t["content"]) for t in prompt]
        result["|".join((kind["protocol"], kind["condition"], kind["tier"]))] = turns
    return result


def _values(column: pl.Series) -> list[Any]:
    """Return the values of a column in the order of their first appearance."""
    return column.drop_nulls().unique(maintain_order=True).to_list()


def _coded(column: pl.Series, values: list[Any]) -> list[int]:
    """Return the position of each value, -1 for null."""
    numbers = {value: number for number, value in enumerate(values)}
    return column.replace_strict(numbers, default=-1, return_dtype=pl.Int32).fill_null(-1).to_list()


def _bits(column: pl.Series, values: list[str]) -> list[int | None]:
    """Return lists of names as bits, None where there is no list."""
    bit = {value: 1 << number for number, value in enumerate(values)}
    return [None if names is None else sum({bit[name] for name in names}) for names in column]


@dataclass(frozen=True)
class Content:
    """The page's data.

    Attributes:
        index: Columns of pairs and samples, to list and filter by.
        texts: Requests by id and prompts by kind.
        chunks: Samples of `CHUNK` pairs each, tier by tier.
    """

    index: dict[str, Any]
    texts: dict[str, Any]
    chunks: list[Any]

    def parts(self) -> Iterator[tuple[str, str]]:
        """Yield (name, packed content) of everything."""
        yield "index", packed(self.index)
        yield "texts", packed(self.texts)
        for number, chunk in enumerate(self.chunks):
            yield f"chunk-{number}", packed(chunk)


def _sides(frame: pl.DataFrame, cases: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return the samples of each tier, one row a pair; nulls where a pair was not asked in a tier."""
    return {
        tier: cases.join(
            frame.filter(pl.col("tier") == tier).drop("condition"),
            on=list(PAIR),
            how="left",
            nulls_equal=True,
            maintain_order="left",
            validate="1:1",
        )
        for tier in TIERS
        if tier in frame["tier"]
    }


def _index(frame: pl.DataFrame, cases: pl.DataFrame, sides: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    values = {name: _values(frame[name]) for name in (*LISTED, *CODED)}
    values["pattern"] = sorted(frame["pattern"].explode().drop_nulls().unique())
    return {
        "chunk": CHUNK,
        "values": values,
        "cases": {name: _coded(cases[name], values[name]) for name in LISTED},
        "tiers": {
            tier: {
                **{name: _coded(side[name], values[name]) for name in CODED},
                **{name: side[name].to_list() for name in PLAIN},
                "pattern": _bits(side["pattern"], values["pattern"]),
            }
            for tier, side in sides.items()
        },
    }


def content(frame: pl.DataFrame, sources: Sources, poles: Mapping[str, Poles], measures: Sequence[str]) -> Content:
    """Return the data of a page.

    Args:
        frame: Rows of `perfmis.joined`.
        sources: What their prompts were rendered from.
        poles: Patterns of what a scratchpad says.
        measures: What a person can label.

    Raises:
        UserError: A protocol, request or snippet of a row is not among the sources.
    """
    sources.check(frame["request_id"])
    frame = ordered(outcomes.parse(frame.drop("parse_status", "tag"), sources.protocols)).with_row_index("row")
    cases = frame.select(*PAIR, "condition").unique(maintain_order=True)
    sides = _sides(frame, cases)
    hashes = {name: _values(frame[name]) for name in ("prompt_sha256", "fingerprint")}
    columns = [_coded(frame[name], values) for name, values in hashes.items()]
    ends = [None if pad is None else units(pad) for pad in frame["scratchpad"]]
    samples = list(zip(frame["raw"], ends, marks(frame["scratchpad"], poles), *columns, strict=True))
    rows = list(zip(*(side["row"] for side in sides.values()), strict=True))
    pairs = [[None if row is None else samples[row] for row in case] for case in rows]
    return Content(
        _index(frame, cases, sides) | {"measures": list(measures)},
        {
            "requests": {name: sources.requests[name] for name in frame["request_id"].unique(maintain_order=True)},
            "prompts": prompts(frame, sources),
            **hashes,
        },
        [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)],
    )
