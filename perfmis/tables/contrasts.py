"""The motivation profile of one model under one method, and the attribution rule.

A method sets two families of contrasts, + against -: arms (fine-tuning), snippets (prompting) or the two ends
of a steering grid. A_net and B_net are the mean changes of the gap over the contents of a family. The rule,
fixed before any result was read: solve for the slopes of the gap per unit of either belief (so that
cross-talk between the families is not mistaken for an effect); a concept is *tracked* when its slope's
interval lies above zero and the slope reaches the floor. A family that moved its own belief by less than
``moved`` has tested nothing: its side is *not tested*, which is not *no effect*. The same holds for two
families that move both beliefs alike, since nothing tells their effects apart then (determinant of the moves
under ``moved`` squared).

Under steering a concept is tracked only if its net also exceeds that of every random vector: the spread of those
is what a direction without meaning does. This condition, and the reading of steering per context, were added after
a first run of the tiny world, in which steering named a side for a model that tracks neither.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from perfmis.statistics import Array, angle, b_fraction, interval, net, probability_greater, slopes
from perfmis.tables.cells import Key, Replicates
from perfmis.tables.common import Row, bounded
from perfmis.vocabulary import CONTENTS

Pairs = Sequence[tuple[Key, Key]]

NUMBERS = (
    *("A_net", "A_low", "A_high", "B_net", "B_low", "B_high"),
    *("b_fraction", "b_fraction_low", "b_fraction_high", "b_defined", "angle", "angle_low", "angle_high"),
    *("p_A_greater", "moved_A", "moved_B", "cross_A", "cross_B"),
    *("slope_expectation", "slope_expectation_low", "slope_expectation_high"),
    *("slope_consequence", "slope_consequence_low", "slope_consequence_high"),
)
SCHEMA: dict[str, Any] = dict.fromkeys(NUMBERS, pl.Float64) | {
    "b_fraction_note": pl.String,
    "attribution": pl.String,
}


def arm_pairs(family: str, present: Sequence[str]) -> list[tuple[str, str]]:
    """Return the (+, -) arms of a family, one pair per content whose poles are both present."""
    pairs = [(f"{family}{content}+", f"{family}{content}-") for content in CONTENTS]
    return [pair for pair in pairs if set(pair) <= set(present)]


def _nets(replicates: Replicates, pairs: Pairs) -> tuple[Array, Array, Array]:
    """Return the change of the gap, of the expectation rate and of the consequence rate, + minus -."""
    gap = net([replicates.gap(*plus) for plus, _ in pairs], [replicates.gap(*minus) for _, minus in pairs])
    rates = [
        net(
            [replicates.share(rate, *plus) for plus, _ in pairs],
            [replicates.share(rate, *minus) for _, minus in pairs],
        )
        for rate in ("expectation", "consequence")
    ]
    return gap, rates[0], rates[1]


def _fraction(a_net: Array, b_net: Array, confidence: float) -> Row:
    """Return the B-fraction, or why there is none."""
    fraction = b_fraction(a_net, b_net)
    low, high = interval(a_net + b_net, confidence)
    if np.isnan(a_net[0]) or np.isnan(b_net[0]):
        note = "a family was not run"
    elif a_net[0] < 0 and b_net[0] < 0:
        note = "both nets are negative"
    elif a_net[0] < 0 or b_net[0] < 0:
        note = "the nets have unlike signs"
    elif low <= 0 <= high:
        note = "A_net + B_net is not distinguishable from zero"
    else:
        note = ""
    row = bounded("b_fraction", fraction, confidence)
    if note:
        row = dict.fromkeys(row)
    return row | {"b_fraction_note": note, "b_defined": float(np.mean(~np.isnan(fraction[1:])))}


def _slopes(nets: tuple[Array, Array], moves: Array, threshold: float) -> tuple[Array, Array]:
    """Return the slopes of both concepts; NaN on a side that was not tested.

    Args:
        nets: A_net and B_net.
        moves: Array (2, 2, 1 + resamples): rows are families, columns beliefs.
        threshold: Smallest move of its own belief that tests a family.
    """
    undefined = np.full(1, np.nan)
    tested = [bool(moves[family, family, 0] >= threshold) for family in (0, 1)]
    if all(tested):
        determinant = np.linalg.det(moves[:, :, 0])
        if determinant < threshold**2:
            return undefined, undefined
        return slopes(((moves[0, 0], moves[0, 1]), (moves[1, 0], moves[1, 1])), nets)
    first = nets[0] / moves[0, 0] if tested[0] else undefined
    second = nets[1] / moves[1, 1] if tested[1] else undefined
    return first, second


def attribution(expectation: bool | None, consequence: bool | None) -> str:
    """Return the verdict from what is tracked per concept (None: not tested)."""
    match expectation, consequence:
        case (True, True):
            return "both"
        case (True, None):
            return "expectation (consequence not tested)"
        case (None, True):
            return "consequence (expectation not tested)"
        case (True, _):
            return "expectation"
        case (_, True):
            return "consequence"
        case (False, False):
            return "neither"
    return "not tested"


def _tracked(replicates: Array, confidence: float, floor: float) -> bool | None:
    if np.isnan(replicates[0]):
        return None
    low, _ = interval(replicates, confidence)
    return bool(low > 0 and replicates[0] >= floor)


def profile(
    replicates: Replicates, a_pairs: Pairs, b_pairs: Pairs, statistics: Row, largest_random: float = 0.0
) -> Row:
    """Return the profile of one model under one method.

    Args:
        replicates: Replicates of the model's cells.
        a_pairs: (+, -) cells of family A, one pair per content; empty when not run.
        b_pairs: The same of family B.
        statistics: The ``statistics`` settings.
        largest_random: Largest absolute net of a random vector, percentage points.

    Returns:
        The columns of ``SCHEMA``; nets in percentage points, moves as differences of rates 0..1, slopes in
        percentage points of gap per unit of belief, angles in degrees.
    """
    confidence, floor = statistics["confidence"], statistics["floor"]
    a_net, a_expectation, a_consequence = _nets(replicates, a_pairs)
    b_net, b_expectation, b_consequence = _nets(replicates, b_pairs)
    a_net, b_net, *moved = np.broadcast_arrays(a_net, b_net, a_expectation, a_consequence, b_expectation, b_consequence)
    moves = np.array(moved).reshape(2, 2, -1)
    slope = _slopes((a_net, b_net), moves, statistics["moved"])
    tracked = [
        rule and bool(abs(own[0]) > largest_random) if (rule := _tracked(side, confidence, floor)) is not None else None
        for side, own in zip(slope, (a_net, b_net), strict=True)
    ]
    return {
        **bounded("A_net", a_net, confidence, "A_"),
        **bounded("B_net", b_net, confidence, "B_"),
        **_fraction(a_net, b_net, confidence),
        **bounded("angle", angle(a_net, b_net), confidence),
        "p_A_greater": probability_greater(a_net, b_net),
        **dict(zip(("moved_A", "cross_A", "cross_B", "moved_B"), moves[..., 0].ravel().tolist(), strict=True)),
        **bounded("slope_expectation", slope[0], confidence),
        **bounded("slope_consequence", slope[1], confidence),
        "attribution": attribution(*tracked),
    }
