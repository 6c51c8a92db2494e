"""Where in a scratchpad the patterns match: the same matches that `perfmis.outcomes` counts, with their places.

A match that is denied or doubted, and so speaks for neither pole, has ``?`` for its pole.
"""

from collections.abc import Mapping

import polars as pl

from perfmis import negation
from perfmis.outcomes import READINGS, Poles

# Of Unicode's private use area. Where a text has them, they count as characters that match nothing.
OPEN, BETWEEN, CLOSE = "\ue000", "\ue001", "\ue002"
SIGNS = {1: "+", -1: "-", 0: "?"}
Mark = tuple[int, int, str]


def _delimited(poles: Poles) -> pl.Expr:
    """Return the column ``scratchpad`` with the groups of each match delimited."""
    plain = pl.col("scratchpad").str.replace_all(f"[{OPEN}-{CLOSE}]", "\ufffd").str.replace_all("’", "'", literal=True)
    groups = [f"${{{name}}}" if name != "denial" or poles.denial else "" for name in negation.FIELDS]
    return plain.str.replace_all(poles.statement, OPEN + BETWEEN.join(groups) + CLOSE)


def units(text: str) -> int:
    """Return the length of a text as JavaScript counts it, in UTF-16 code units."""
    return len(text.encode("utf-16-le")) // 2


def _places(delimited: str) -> list[tuple[int, int, list[str]]]:
    """Return the place of each match and its groups."""
    first, *rest = delimited.split(OPEN)
    position, result = units(first), []
    for piece in rest:
        match, _, between = piece.partition(CLOSE)
        groups = match.split(BETWEEN)
        lengths = dict(zip(negation.FIELDS, map(units, groups), strict=True))
        start = position + lengths["supposed"] + lengths["before"]
        end = start + lengths["denial"] + lengths["minus"] + lengths["plus"]
        result.append((start, end, groups))
        position += sum(lengths.values()) + units(between)
    return result


def _signs(matches: list[list[str]], poles: Poles) -> list[int | None]:
    """Return what each match states, from its groups: see `perfmis.negation.sign`."""
    groups = pl.DataFrame(matches, schema=dict.fromkeys(negation.FIELDS, pl.String), orient="row")
    present = groups.with_columns(pl.when(pl.all() != "").then(pl.all()))
    return present.select(negation.sign(poles.plus)).to_series().to_list()


def marks(scratchpads: pl.Series, poles: Mapping[str, Poles]) -> list[list[Mark]]:
    """Return the matches in each scratchpad, by their start.

    Args:
        scratchpads: Texts, null where there is none.
        poles: Patterns of the readings.

    Returns:
        (start, end, reading and pole) of each match, in UTF-16 code units; matches of several readings may overlap.
    """
    frame = scratchpads.to_frame("scratchpad").select(_delimited(poles[reading]).alias(reading) for reading in READINGS)
    result: list[list[Mark]] = [[] for _ in range(len(scratchpads))]
    for reading in READINGS:
        found = [(row, *place) for row, text in enumerate(frame[reading]) if text for place in _places(text)]
        signs = _signs([groups for *_, groups in found], poles[reading])
        for (row, start, end, _), sign in zip(found, signs, strict=True):
            if sign is not None:
                result[row].append((start, end, f"{reading}{SIGNS[sign]}"))
    return [sorted(own) for own in result]
