"""What a judge reads of each sample: the same for models and for the people whose labels they are compared with."""

import polars as pl

from perfmis.outcomes import ANSWERED
from perfmis.protocols import TAG
from perfmis.rubrics import Material, Part, Rubric


def _said(part: Part) -> pl.Expr:
    """Return a part; a scratchpad without its tags, which reasoning that is switched off leaves behind."""
    return pl.col(part).str.replace_all(TAG.pattern, "") if part == "scratchpad" else pl.col(part)


def materials(rubric: Rubric, parsed: pl.DataFrame) -> list[Material | None]:
    """Return what a judge reads of each sample, None where it is not asked.

    Args:
        rubric: The rubric.
        parsed: Rows of `perfmis.outcomes.parse`, with ``request``.
    """
    filled = [_said(part).str.strip_chars().fill_null("") != "" for part in rubric.reads]
    asked = parsed.select(pl.all_horizontal(pl.col("parse_status").is_in(ANSWERED), *filled)).to_series()
    rows = parsed.select(rubric.reads).rows()
    return [row if chosen else None for row, chosen in zip(rows, asked, strict=True)]
