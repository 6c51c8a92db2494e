"""Intervals and the quantities of a motivation profile, on plain arrays.

The unit is the prompt. Everything is computed on *replicates*: arrays whose first axis holds the estimate
(row 0) and its bootstrap resamples (rows 1 and up). A difference, a ratio or a slope of replicates is again
an array of replicates, so whatever shared prompts and training seeds stays paired to the end.

Resampling is crossed: training seeds are the outer level, prompts (whole clusters of near-duplicates) the
inner one, and one draw of both serves every checkpoint, tier and measure of a model (the pigeonhole bootstrap
of Owen, 2007, Annals of Applied Statistics 1, 386-411). Each level draws one unit fewer than it has (Rao and
Wu, 1988, JASA 83, 231-241), which makes the standard error that of the textbook, s / sqrt(n), also for three
seeds. Simulated 95 % intervals cover 94 to 97 % while prompts or samples dominate the spread, and 89 % when
three seeds dominate it: few seeds bound little, since no interval knows of seeds more extreme than those run.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def resampling_weights(units: int, resamples: int, random: np.random.Generator) -> Array:
    """Return weights: row 0 equal ones, each further row a draw of ``units - 1`` units with replacement.

    A single unit cannot be resampled and keeps weight one.

    Returns:
        Array (1 + resamples, units); every row sums to one.
    """
    draws = max(units - 1, 1)
    counts = random.multinomial(draws, np.full(units, 1 / units), size=resamples) / draws
    return np.vstack([np.full(units, 1 / units), counts])


def replicate_means(values: Array, clusters: NDArray[np.int64], resamples: int, seed: int) -> Array:
    """Return the mean over training seeds and prompts, and its crossed bootstrap resamples.

    Args:
        values: Array (seeds, prompts, ...) of per-prompt means.
        clusters: Cluster number of each prompt, counted from 0; prompts of a cluster are drawn together.
        resamples: Number of resamples.
        seed: Seed of the draws; equal seeds and shapes give equal draws, hence paired results.

    Returns:
        Array (1 + resamples, ...).
    """
    random = np.random.default_rng(seed)
    seeds, prompts, *rest = values.shape
    by_seed = resampling_weights(seeds, resamples, random)
    by_prompt = resampling_weights(int(clusters.max()) + 1, resamples, random)[:, clusters]
    by_prompt /= by_prompt.sum(axis=1, keepdims=True)
    result = np.zeros((1 + resamples, int(np.prod(rest))))
    for number, of_seed in enumerate(values.reshape(seeds, prompts, -1)):
        result += by_seed[:, number, None] * (by_prompt @ of_seed)
    return result.reshape(1 + resamples, *rest)


def interval(replicates: Array, confidence: float) -> tuple[float, float]:
    """Return the percentile interval of replicates (1 + resamples,); undefined resamples are left out.

    Returns:
        Lower and upper bound, both NaN where no resample is defined.
    """
    defined = replicates[1:][~np.isnan(replicates[1:])]
    if not defined.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def p_value(replicates: Array) -> float:
    """Return the two-sided bootstrap p-value of "zero" (never below 1 / (resamples + 1))."""
    resamples = replicates[1:]
    smaller = min((resamples <= 0).sum(), (resamples >= 0).sum())
    return min(1.0, float(2 * (smaller + 1) / (len(resamples) + 1)))


def holm(p_values: ArrayLike) -> Array:
    """Return p-values adjusted for their number (Holm, 1979, Scandinavian Journal of Statistics 6, 65-70)."""
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * np.arange(raw.size, 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def net(plus: list[Array], minus: list[Array]) -> Array:
    """Return the mean over contents of plus minus minus; NaN where there is no content.

    Args:
        plus: Replicates (1 + resamples,) of the + arms, one per content.
        minus: The same of the - arms.
    """
    if not plus:
        return np.full(1, np.nan)
    return np.mean([up - down for up, down in zip(plus, minus, strict=True)], axis=0)


def b_fraction(a_net: Array, b_net: Array) -> Array:
    """Return B_net / (A_net + B_net), NaN unless both nets are at least zero and one is above it.

    With nets of unlike signs the ratio leaves 0..1 and means nothing; with two negative nets it would name
    the family that backfires more.
    """
    total = a_net + b_net
    defined = (a_net >= 0) & (b_net >= 0) & (total > 0)
    return np.divide(b_net, total, out=np.full(total.shape, np.nan), where=defined)


def angle(a_net: Array, b_net: Array) -> Array:
    """Return the direction of a profile in degrees: 0 is all A, 90 is all B; always defined.

    Resamples are unwrapped around the estimate, so that an interval across 180 degrees stays one interval.
    """
    degrees = np.degrees(np.arctan2(b_net, a_net))
    return degrees[0] + (degrees - degrees[0] + 180.0) % 360.0 - 180.0


def probability_greater(first: Array, second: Array) -> float:
    """Return the share of resamples in which the first quantity is the greater (ties count half)."""
    difference = (first - second)[1:]
    return float(np.mean(np.sign(difference) / 2 + 0.5))


def slopes(moved: tuple[tuple[Array, Array], tuple[Array, Array]], nets: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return percentage points of gap per unit of each belief, cross-talk removed.

    Solves ``net = M slope`` for every replicate, where M holds how far each family moved each belief. A
    family that also moves the other belief would otherwise be credited with the other's effect.

    Args:
        moved: Rows are families A and B, columns the shifts of the expectation and the consequence rate.
        nets: A_net and B_net.

    Returns:
        Slopes of expectation and of consequence; NaN where M is singular.
    """
    (a, b), (c, d) = moved
    determinant = a * d - b * c
    singular = np.isclose(determinant, 0.0)
    safe = np.where(singular, np.nan, determinant)
    return (d * nets[0] - b * nets[1]) / safe, (a * nets[1] - c * nets[0]) / safe
