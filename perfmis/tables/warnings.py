"""What a reader must know of the answers that a row rests on: malformed, the same as without treatment, unchecked.

Rows of gaps, prompting, steering and calibration say it of their own cells, profiles of the cells that they
contrast, and convergence of the profiles that it compares.
"""

from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from perfmis.tables.cells import GAP_TIERS, Key, Replicates
from perfmis.tables.common import Row
from perfmis.vocabulary import ARMS, NEUTRAL, ORGANISM

ALIKE = 0.95  # Share of samples with the same answer above which a treatment is in doubt.
NO_NEUTRAL_ARM = "no neutral arm: what fine-tuning alone does to the gap is not known"
# What came of a sample; the hash of its text decides where there is one.
CAME = ("raw_sha256", "finish", "tokens", "outcome", "expectation", "consequence", "in_training")
# What is read from it: a treatment that moves none of that has tested nothing.
READ = ("outcome", "expectation", "consequence")
STILL = "moved neither answers nor stated beliefs"
QUESTION = ("seed", "request_id", "tier", "eval_seed")


def malformed(replicates: Replicates, key: Key, statistics: Row, word: str = "malformed") -> str:
    """Return the warning that a cell needs for its malformed answers, or an empty string."""
    lost = [tier for tier in GAP_TIERS if replicates.share(f"malformed_{tier}", *key)[0] == 1]
    share = replicates.malformed(*key)
    if share <= statistics["malformed"] and not lost:
        return ""
    whole = f", every answer of the {lost[0]} tier" if len(lost) == 1 else ""
    return f"{word} {100 * share:.0f} %{whole}" + (": no answer could be read" if len(lost) > 1 else "")


def most_malformed(replicates: Replicates, keys: Sequence[Key], statistics: Row) -> str:
    """Return the warning of the cell with the most malformed answers, if they are too many."""
    worst = max(keys, key=lambda key: replicates.malformed(*key))
    whole = [key for key in keys if malformed(replicates, key, {"malformed": 1.0})]
    if replicates.malformed(*worst) <= statistics["malformed"] and not whole:
        return ""
    found = f"malformed up to {100 * replicates.malformed(*worst):.0f} % ({named(worst)})"
    lost = f"; every answer of a tier malformed: {', '.join(map(named, whole))}" if whole else ""
    return found + lost


def named(key: Key) -> str:
    """Return the name of a cell in words; that of the organism goes without saying."""
    return " ".join(str(part) for part in key if part is not None).removeprefix(f"{ORGANISM} ")


def alike(
    cells: pl.DataFrame, reference: pl.DataFrame, keys: Sequence[str], what: Sequence[str] = CAME
) -> dict[Key, float]:
    """Return the share of the samples of each cell whose answer is the reference's to the same question.

    Args:
        cells: Outcome rows.
        reference: Outcome rows of what they are compared with, one a question.
        keys: Columns that name a cell. Those that the reference has to share with it are not among them.
        what: Columns to compare, those that both have.

    Returns:
        Shares 0..1 of the samples whose question was put to the reference, too; cells without any are left out.
    """
    came = [column for column in what if column in cells.columns and column in reference.columns]
    answers = reference.select(*QUESTION, *(pl.col(column).alias(f"{column}_there") for column in came))
    both = cells.join(answers, on=QUESTION)
    same = pl.all_horizontal(pl.col(column).eq_missing(pl.col(f"{column}_there")) for column in came)
    shares = both.group_by(keys).agg(same.mean().alias("same"))
    return {tuple(row[:-1]): row[-1] for row in shares.rows()}


def unmoved(share: float | None, whose: str) -> str:
    """Return the warning that answers are those that came without treatment, or an empty string."""
    return f"answers identical to {whose} in {100 * share:.0f} % of samples" if share and share > ALIKE else ""


def as_without(
    outcomes: pl.DataFrame, keys: Sequence[str], treated: pl.Expr, shared: Sequence[str], whose: str
) -> dict[Key, str]:
    """Return the warnings of treated cells that answer as the untreated cell does that shares some columns with them.

    Args:
        outcomes: Outcome rows of one model.
        keys: Columns that name a cell.
        treated: Which rows are treated; false for one cell of each group.
        shared: Columns that name a group.
        whose: Whose answers the untreated ones are, in words.
    """
    shares = _shares(outcomes, keys, treated, shared, CAME)
    return {key: unmoved(share, whose) for key, share in shares.items()}


def still(outcomes: pl.DataFrame, keys: Sequence[str], treated: pl.Expr, shared: Sequence[str]) -> dict[Key, str]:
    """Return the warnings of treated cells of which all that is read is as in the untreated cell.

    Args:
        outcomes: Outcome rows of one model.
        keys: Columns that name a cell.
        treated: Which rows are treated; false for one cell of each group.
        shared: Columns that name a group.
    """
    shares = _shares(outcomes, keys, treated, shared, READ)
    return {key: STILL for key, share in shares.items() if share == 1}


def _shares(
    outcomes: pl.DataFrame, keys: Sequence[str], treated: pl.Expr, shared: Sequence[str], what: Sequence[str]
) -> dict[Key, float]:
    result: dict[Key, float] = {}
    for _, group in outcomes.group_by(shared):
        result |= alike(group.filter(treated), group.filter(~treated), keys, what)
    return result


def as_the_organism(outcomes: pl.DataFrame, keys: Sequence[str]) -> dict[Key, str]:
    """Return the warnings of cells of other checkpoints that answer as the organism does under the same protocol.

    The neutral arm is none of them: leaving the answers as they were is what it is for.

    Args:
        outcomes: Outcome rows of one model.
        keys: Columns that name a cell, checkpoint and protocol among them.
    """
    shared = [key for key in keys if key != "checkpoint"]
    return as_without(
        outcomes.filter(pl.col("checkpoint") != NEUTRAL),
        keys,
        pl.col("checkpoint") != ORGANISM,
        shared,
        "the organism's",
    )


def listed(warnings: Mapping[Key, str], keys: Iterable[Key]) -> list[str]:
    """Return the warnings of some cells, each once with the names of its cells before it."""
    cells: dict[str, list[str]] = {}
    for key in keys:
        for text in filter(None, warnings.get(key, "").split("; ")):
            cells.setdefault(text, []).append(named(key))
    return [f"{', '.join(names)}: {text}" for text, names in cells.items()]


def no_neutral_arm(present: Sequence[str]) -> str:
    """Return the warning that the arms among the checkpoints lack the one that makes no claim, or an empty string."""
    return NO_NEUTRAL_ARM if set(present) & set(ARMS) and NEUTRAL not in present else ""
