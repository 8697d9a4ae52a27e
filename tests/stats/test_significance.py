"""Each test against an independent computation of the same thing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.optimize import minimize_scalar
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.weightstats import ttost_paired

from harness.stats.bounds import Bootstrap, Bound, Outer, ScoreTest, StudentT, two_sided
from harness.stats.significance import (
    LARGEST_CORRELATION,
    bca,
    clustered_t,
    continuous,
    cosine_t,
    mcnemar_p,
    permutation,
    score,
    sign_flip,
    welch_t,
)

RNG = np.random.default_rng(11)
VALUES = st.lists(st.floats(-10, 10).map(lambda value: round(value, 3)), min_size=2, max_size=8)


def ones(count: int) -> np.ndarray:
    return np.ones(count)


@given(VALUES)
def test_sign_flips_are_those_of_scipy(values: list[float]) -> None:
    theirs = scipy_stats.permutation_test(
        (np.array(values),), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    assert two_sided(sign_flip(np.array(values), ones(len(values)))) == pytest.approx(theirs.pvalue)


def test_sign_flips_of_unequal_clusters_count_every_flip() -> None:
    """Written out for an effect other than zero: residuals are flipped, and their sum is what is counted."""
    sums, sizes, effect = RNG.normal(1, 2, 9), RNG.uniform(1, 5, 9), 0.3
    residuals = sums - effect * sizes
    flipped = np.array(list(itertools.product((1, -1), repeat=9))) @ residuals
    at_most, at_least = sign_flip(sums, sizes).tails(effect)
    assert at_most == pytest.approx(np.mean(flipped >= residuals.sum() - 1e-9))
    assert at_least == pytest.approx(np.mean(flipped <= residuals.sum() + 1e-9))


@settings(max_examples=30)
@given(VALUES, VALUES)
def test_permutations_are_those_of_scipy(ours: list[float], theirs: list[float]) -> None:
    expected = scipy_stats.permutation_test(
        (np.array(ours), np.array(theirs)),
        lambda one, other, axis: np.mean(one, axis=axis) - np.mean(other, axis=axis),
        vectorized=True,
        n_resamples=np.inf,
    )
    assert two_sided(permutation(np.array(ours), np.array(theirs))) == pytest.approx(expected.pvalue)


def test_the_clustered_error_is_that_of_a_regression_on_a_constant() -> None:
    """statsmodels' cluster-robust OLS of the items, with the factor G/(G−1) alone."""
    members = np.repeat(np.arange(12), RNG.integers(1, 7, 12))
    values = RNG.normal(size=len(members)) + RNG.normal(size=12)[members]
    fitted = OLS(values, np.ones((len(values), 1))).fit(
        cov_type="cluster", cov_kwds={"groups": members, "use_correction": False}
    )
    mine = clustered_t(np.bincount(members, weights=values), np.bincount(members).astype(float))
    assert mine.mean == pytest.approx(fitted.params[0])
    assert mine.error == pytest.approx(fitted.bse[0] * math.sqrt(12 / 11))


def test_equal_clusters_give_the_paired_t_test_and_its_equivalence_test() -> None:
    ours, theirs = RNG.normal(size=(2, 25))
    mine = clustered_t(ours - theirs, ones(25))
    assert two_sided(mine) == pytest.approx(scipy_stats.ttest_rel(ours, theirs).pvalue)
    low, high = mine.ends(0.05)
    expected = scipy_stats.ttest_rel(ours, theirs).confidence_interval(0.9)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    p = ttost_paired(ours, theirs, -0.5, 0.5)[0]
    assert max(mine.tails(0.5)[1], mine.tails(-0.5)[0]) == pytest.approx(p)


def test_a_few_large_clusters_leave_few_degrees_of_freedom() -> None:
    sizes = np.array([100.0, 100.0, *[1.0] * 30])
    assert clustered_t(RNG.normal(size=32), sizes).degrees == pytest.approx(1, abs=0.01)
    assert clustered_t(RNG.normal(size=32), ones(32)).degrees == pytest.approx(31)


def test_welch_is_that_of_scipy() -> None:
    ours, theirs = RNG.normal(0, 1, 7), RNG.normal(1, 3, 12)
    expected = scipy_stats.ttest_ind(ours, theirs, equal_var=False)
    mine = welch_t(ours, theirs)
    assert two_sided(mine) == pytest.approx(expected.pvalue)
    assert mine.ends(0.025) == pytest.approx(tuple(expected.confidence_interval(0.95)))


@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_is_that_of_statsmodels(up: int, down: int) -> None:
    differences = np.array([1.0] * up + [-1.0] * down + [0.0] * 5)
    assert mcnemar_p(differences) == pytest.approx(mcnemar([[3, up], [down, 2]], exact=True).pvalue)


def test_mcnemar_is_a_sign_flip_test_of_the_answers_that_changed() -> None:
    differences = np.array([1.0] * 9 + [-1.0] * 2)
    assert mcnemar_p(differences) == pytest.approx(two_sided(sign_flip(differences, ones(11))))


@pytest.mark.parametrize("count", [2, 6, 7, 40])
def test_the_share_that_cosines_show_is_that_of_an_ar1_process(count: int) -> None:
    """The closed forms against the covariance matrix written out."""
    from harness.stats.significance import _cosines

    rows = np.arange(count)
    covariance = LARGEST_CORRELATION ** np.abs(rows[:, None] - rows)
    used, share, degrees = _cosines(count)
    waves = np.sqrt(2 / count) * np.cos(np.pi * np.arange(1, used + 1)[:, None] * (rows + 0.5) / count)
    variances = np.diag(waves @ covariance @ waves.T)
    assert share == pytest.approx(variances.mean() / (covariance.sum() / count))
    assert degrees == pytest.approx(variances.sum() ** 2 / (variances**2).sum())


def test_the_cosine_error_is_that_of_the_slowest_swings() -> None:
    """Least squares on cosines, written out, in place of the transform."""
    from harness.stats.significance import _cosines

    sums = RNG.normal(size=30)
    used, share, degrees = _cosines(30)
    waves = np.sqrt(2 / 30) * np.cos(np.pi * np.arange(1, used + 1) * (np.arange(30)[:, None] + 0.5) / 30)
    swings = np.linalg.lstsq(waves, sums - sums.mean(), rcond=None)[0]
    mine = cosine_t(sums, ones(30))
    assert mine == StudentT(pytest.approx(sums.mean()), pytest.approx(mine.error), degrees)
    assert mine.error == pytest.approx(math.sqrt(np.mean(swings**2) / share / 30))


def test_windows_in_another_order_swing_differently() -> None:
    rising = np.linspace(-1, 1, 40)
    assert cosine_t(rising, ones(40)).error > 1.5 * cosine_t(RNG.permutation(rising), ones(40)).error


def test_the_bootstrap_is_that_of_scipy() -> None:
    values = RNG.exponential(1, 80)
    mine = bca(values, ones(80))
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, method="BCa", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    error = values.std() / math.sqrt(80)
    assert mine.ends(0.05) == pytest.approx((theirs.low, theirs.high), abs=0.12 * error)


def test_the_bootstrap_draws_clusters_whole() -> None:
    """A ratio of sums: against scipy's bootstrap of pairs (sum, size)."""
    sizes = RNG.integers(1, 6, 60).astype(float)
    sums = RNG.exponential(1, 60) * sizes
    theirs = scipy_stats.bootstrap(
        (sums, sizes),
        lambda one, other, axis: one.sum(axis=axis) / other.sum(axis=axis),
        paired=True,
        confidence_level=0.9,
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert bca(sums, sizes).ends(0.05) == pytest.approx((theirs.low, theirs.high), rel=0.02)


def test_many_units_are_resampled_in_blocks() -> None:
    values = RNG.normal(1, 1, 2500)
    assert bca(values, ones(2500)).ends(0.025) == pytest.approx(clustered_t(values, ones(2500)).ends(0.025), abs=3e-3)


@pytest.mark.parametrize(("up", "down", "count", "share"), [(12, 3, 40, 0.1), (0, 0, 30, 0.05), (2, 9, 25, -0.4)])
def test_the_score_is_tangos(up: int, down: int, count: int, share: float) -> None:
    """Against the likelihood of rising, falling and staying, maximised numerically under the assumed difference."""

    def against(falling: float) -> float:
        shares = np.array([falling + share, falling, 1 - 2 * falling - share])
        counts = np.array([up, down, count - up - down])
        return -float(np.sum(counts[counts > 0] * np.log(np.maximum(shares[counts > 0], 1e-300))))

    span = (max(0.0, -share), (1 - share) / 2)
    falling = minimize_scalar(against, bounds=span, method="bounded", options={"xatol": 1e-12}).x
    expected = (up - down - count * share) / math.sqrt(count * (2 * falling + share - share**2))
    assert ScoreTest(up, down, count).z(share) == pytest.approx(expected, abs=1e-4)


def test_no_flip_in_few_answers_does_not_prove_that_none_can_be() -> None:
    low, high = ScoreTest(0, 0, 10).ends(0.025)
    assert high == pytest.approx(-low)
    assert high > 0.25


def test_parts_of_pairs_scatter_no_more_than_whole_ones() -> None:
    """Two clusters that rose by a half count as one pair that rose; sizes turn shares into the effect's unit."""
    mine = score(np.array([1.0, 1.0, 0.0, -2.0]), np.array([2.0, 2.0, 1.0, 2.0]))
    assert (mine.up, mine.down, mine.count) == (1.0, 1.0, 4)
    assert mine.scale == pytest.approx(2 * 4 / 7)


BOUNDS: list[Bound] = [
    StudentT(0.3, 0.2, 7),
    sign_flip(RNG.normal(0.3, 0.4, 10), RNG.uniform(1, 2, 10)),
    permutation(RNG.normal(0.3, 0.4, 5), RNG.normal(0, 0.4, 6)),
    ScoreTest(9, 3, 40),
    ScoreTest(2.5, 0.25, 30, 1.7),
    bca(RNG.exponential(1, 60) - 0.5, ones(60)),
    Outer(StudentT(0.3, 0.2, 7), StudentT(0.4, 0.1, 3)),
]


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.name)
@pytest.mark.parametrize("tail", [0.025, 0.05, 0.2])
def test_an_interval_holds_what_the_tails_do_not_refuse(bound: Bound, tail: float) -> None:
    low, high = bound.ends(tail)
    step = 1e-3 * (high - low)
    assert bound.tails(low - step)[0] <= tail + 1e-3
    assert bound.tails(high + step)[1] <= tail + 1e-3
    assert bound.tails(low + step)[0] > tail - 1e-3
    assert bound.tails(high - step)[1] > tail - 1e-3


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.name)
def test_tails_rise_and_fall_with_the_assumed_effect(bound: Bound) -> None:
    at_most, at_least = zip(*(bound.tails(effect) for effect in np.linspace(-0.9, 0.9, 60)), strict=True)
    assert np.all(np.diff(at_most) >= -1e-12)
    assert np.all(np.diff(at_least) <= 1e-12)


def test_too_few_units_have_no_exact_interval() -> None:
    assert sign_flip(np.arange(5.0), ones(5)).ends(0.025) == (-math.inf, math.inf)
    assert math.isfinite(sign_flip(np.arange(6.0), ones(6)).ends(0.025)[0])


def test_no_scatter_at_all_leaves_no_doubt() -> None:
    certain = StudentT(0.2, 0.0, 5)
    assert (certain.tails(0.1), certain.tails(0.2), certain.tails(0.3)) == ((0.0, 1.0), (1.0, 1.0), (1.0, 0.0))
    assert certain.ends(0.025) == (0.2, 0.2)


def test_an_effect_beyond_all_replicates_is_left_to_the_other_bound() -> None:
    replicates = Bootstrap(np.linspace(-1, 1, 100), 0.0, 0.0)
    assert replicates.tails(5.0) == (1.0, 0.0)
    assert Outer(StudentT(0, 0.5, 9), replicates).tails(5.0)[1] == StudentT(0, 0.5, 9).tails(5.0)[1]


def test_the_correction_for_continuity_is_half_a_step() -> None:
    """Of 20 units that changed by one, the sum of flips moves in steps of two."""
    sums = np.array([1.0] * 15 + [-1.0] * 5)
    corrected = continuous(clustered_t(sums, ones(20)), sums, ones(20))
    assert corrected.mean == pytest.approx((10 - 1) / 20)
    exact = scipy_stats.binomtest(5, 20).pvalue
    plain = two_sided(clustered_t(sums, ones(20)))
    assert plain < two_sided(corrected)
    assert abs(two_sided(corrected) - exact) < abs(plain - exact)


@pytest.mark.parametrize(("windows", "mean", "narrower"), [(8, 1.9, 0.02), (30, 1.35, 0.14), (100, 1.15, 0.25)])
def test_an_interval_over_windows_is_wider_on_average_and_not_in_every_case(
    windows: int, mean: float, narrower: float
) -> None:
    """Those of docs/explanation/measuring.md, independent windows: cosines against the plain t-interval of scipy."""
    generator = np.random.default_rng([17, windows])
    widths = []
    for row in generator.standard_normal((600, windows)):
        low, high = cosine_t(row, ones(windows)).ends(0.025)
        plain = scipy_stats.ttest_1samp(row, 0).confidence_interval(0.95)
        widths.append((high - low) / (plain.high - plain.low))
    assert np.mean(widths) == pytest.approx(mean, abs=0.06)
    assert np.mean(np.array(widths) < 1) == pytest.approx(narrower, abs=0.06)
