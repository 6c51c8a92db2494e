"""Closed forms, coverage on simulated data, and the undefined."""

import numpy as np
import pytest

from perfmis.statistics import (
    angle,
    b_fraction,
    holm,
    interval,
    net,
    p_value,
    probability_greater,
    replicate_means,
    resampling_weights,
    slopes,
)


def replicates(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Resample (seeds, prompts) values with a cluster per prompt."""
    return replicate_means(values, np.arange(values.shape[1]), resamples, seed)


def test_weights_sum_to_one_and_start_with_equal_ones() -> None:
    weights = resampling_weights(7, 50, np.random.default_rng(0))
    assert weights.shape == (51, 7)
    assert np.allclose(weights.sum(axis=1), 1)
    assert np.allclose(weights[0], 1 / 7)


def test_standard_error_of_paired_mean_is_the_textbook_one() -> None:
    difference = np.random.default_rng(0).normal(5, 2, size=(1, 40))
    spread = replicates(difference, 20_000)[1:].std()
    assert spread == pytest.approx(difference.std(ddof=1) / np.sqrt(40), rel=0.03)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_standard_error_over_few_seeds_is_unbiased(seeds: int) -> None:
    values = np.repeat(np.random.default_rng(seeds).normal(size=(seeds, 1)), 30, axis=1)
    spread = replicates(values, 20_000)[1:].std()
    assert spread == pytest.approx(values[:, 0].std(ddof=1) / np.sqrt(seeds), rel=0.03)


def test_pairing_cancels_what_cells_share() -> None:
    random = np.random.default_rng(0)
    shared = random.normal(0, 10, size=(1, 50))
    both = np.stack([shared + 1, shared], axis=-1)
    result = replicate_means(both, np.arange(50), 200, 0)
    assert np.allclose(result[:, 0] - result[:, 1], 1)


def test_prompts_of_a_cluster_are_drawn_together() -> None:
    one_each = np.random.default_rng(0).normal(size=(1, 20))
    thrice = np.repeat(one_each, 3, axis=1)
    clustered = replicate_means(thrice, np.repeat(np.arange(20), 3), 500, 0)
    assert np.allclose(clustered, replicate_means(one_each, np.arange(20), 500, 0))
    assert replicates(thrice)[1:].std() < 0.7 * clustered[1:].std()


def test_unequal_clusters_keep_the_mean_over_prompts_as_estimate() -> None:
    values = np.array([[1.0, 1.0, 1.0, 5.0]])
    assert replicate_means(values, np.array([0, 0, 0, 1]), 100, 0)[0] == pytest.approx(2)


@pytest.mark.parametrize(
    ("seeds", "between", "lowest"), [(1, 0.0, 0.90), (3, 0.05, 0.92), (5, 0.15, 0.90), (3, 0.5, 0.82)]
)
def test_intervals_cover_a_known_mean(seeds: int, between: float, lowest: float) -> None:
    """Nominal is 0.95; seeds that dominate the spread with three of them cover less, as documented."""
    random, covered = np.random.default_rng(1), 0
    for repeat in range(300):
        values = (
            random.normal(0, between, (seeds, 1)) + random.normal(0, 1, (1, 40)) + random.normal(0, 0.5, (seeds, 40))
        )
        low, high = interval(replicates(values, 300, repeat), 0.95)
        covered += low <= 0 <= high
    assert lowest <= covered / 300 <= 0.99


def test_same_seed_gives_the_same_draws() -> None:
    values = np.random.default_rng(0).normal(size=(3, 20, 2))
    first, second = (replicate_means(values, np.arange(20), 50, 4) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, replicate_means(values, np.arange(20), 50, 5))


def test_interval_ignores_undefined_resamples() -> None:
    assert interval(np.array([1.0, np.nan, 2.0, 2.0]), 0.95) == (2.0, 2.0)
    assert np.isnan(interval(np.array([1.0, np.nan]), 0.95)).all()


def test_p_value_is_two_sided_and_never_zero() -> None:
    assert p_value(np.array([5.0, *np.arange(1, 100)])) == pytest.approx(2 / 100)
    assert p_value(np.array([0.0, *np.zeros(99)])) == 1


def test_holm_matches_the_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert holm([]).size == 0


def test_net_is_the_mean_over_contents() -> None:
    plus, minus = [np.array([26.0]), np.array([30.0])], [np.array([9.0]), np.array([11.0])]
    assert net(plus, minus) == pytest.approx([18])
    assert np.isnan(net([], [])).all()


@pytest.mark.parametrize(
    ("a_net", "b_net", "fraction"),
    [(17.0, 7.9, 0.317), (22.5, 17.2, 0.433), (40.0, 28.6, 0.417), (0.0, 3.0, 1.0)],
)
def test_b_fraction_follows_its_definition(a_net: float, b_net: float, fraction: float) -> None:
    assert b_fraction(np.array([a_net]), np.array([b_net])) == pytest.approx([fraction], abs=5e-4)


@pytest.mark.parametrize(("a_net", "b_net"), [(5.0, -1.0), (-1.0, 5.0), (-2.0, -3.0), (0.0, 0.0)])
def test_b_fraction_is_undefined_for_unlike_or_negative_nets(a_net: float, b_net: float) -> None:
    assert np.isnan(b_fraction(np.array([a_net]), np.array([b_net]))).all()


def test_angle_names_the_axes_and_stays_whole_across_the_cut() -> None:
    assert angle(np.array([1.0]), np.array([0.0])) == pytest.approx([0])
    assert angle(np.array([0.0]), np.array([1.0])) == pytest.approx([90])
    across = angle(np.array([-1.0, -1.0, -1.0]), np.array([0.01, 0.1, -0.1]))
    assert np.ptp(across) < 15


def test_probability_greater_counts_ties_as_half() -> None:
    assert probability_greater(np.array([0, 2, 1, 1.0]), np.array([0, 1, 1, 2.0])) == pytest.approx(0.5)


def test_slopes_recover_a_planted_coupling_despite_cross_talk() -> None:
    moved = (np.array([0.8]), np.array([0.1])), (np.array([0.2]), np.array([0.7]))
    nets = np.array([0.8 * 40 + 0.1 * 5]), np.array([0.2 * 40 + 0.7 * 5])
    expectation, consequence = slopes(moved, nets)
    assert (expectation[0], consequence[0]) == pytest.approx((40, 5))


def test_slopes_are_undefined_when_nothing_tells_the_beliefs_apart() -> None:
    same = np.array([0.5])
    assert np.isnan(slopes(((same, same), (same, same)), (np.array([9.0]), np.array([9.0])))).all()
