"""Texts and regular expressions (Rust dialect) without anything beyond ASCII, where matching is fast.

At a word boundary in a text with a dash or an accent, Rust's fast engine gives up, and the other one takes 60 times as
long; classes of all of Unicode cost several times as much as those of ASCII.
"""

import re

import polars as pl

# A letter stays one, a space stays one, and anything else is neither.
_STAND_INS = ((r"[\s&&[^[:ascii:]]]", " "), (r"[\w&&[^[:ascii:]]]", "x"), ("[^[:ascii:]]", "~"))
_NEGATED_CLASS = re.compile(r"\\.|\[\^((?:\\.|[^\]\\])*)\]|\[(?:\\.|[^\]\\])*\]", re.DOTALL)


def is_about_ascii(pattern: str) -> bool:
    """Return whether a pattern names nothing beyond ASCII, so that texts may do without it."""
    return pattern.isascii() and not re.search(r"\\[pPxuU]", pattern)


def texts(texts: pl.Series) -> pl.Series:
    """Return texts with a stand-in for each character beyond ASCII; apostrophes become straight."""
    plain = texts.str.replace_all("’", "'", literal=True)
    for beyond, stand_in in _STAND_INS:
        plain = plain.str.replace_all(beyond, stand_in)
    return plain


def pattern(pattern: str) -> str:
    """Return a pattern that finds in ASCII what ``pattern`` does, without classes of Unicode where that can be had."""
    negated = _NEGATED_CLASS.sub(lambda m: m[0] if m[1] is None else rf"(?u:[\x00-\x7F&&[^{m[1]}]])", pattern)
    try:
        pl.Series([""]).str.contains(f"(?-u){negated}")
    except pl.exceptions.PolarsError:  # other negations, such as \W
        return pattern
    return f"(?-u){negated}"
