"""Estimates against independent computations and the properties they must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness.core.record import Measurement
from harness.stats.estimate import Estimate, clustered_mean, perplexity, quantile, ratio_of_means, ratio_of_sums

VALUES = st.lists(st.floats(-50, 50), min_size=2, max_size=40)


def nll(values: list[float], weights: tuple[float, ...] = (), first: int = 0) -> Measurement:
    items = tuple(str(first + number) for number in range(len(values)))
    return Measurement("nll", 1, "nat/token", "lower", "paired", tuple(values), weights=weights, item_ids=items)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(VALUES)
def test_equal_weights_give_the_t_interval_of_scipy(values: list[float]) -> None:
    mine = clustered_mean(nll(values))
    theirs = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mine.value == pytest.approx(np.mean(values), abs=1e-9)
    assert mine.low == pytest.approx(theirs.low, abs=1e-6)
    assert mine.high == pytest.approx(theirs.high, abs=1e-6)


def test_perplexity_weighs_windows_by_their_tokens() -> None:
    estimate = perplexity(nll([1.0, 4.0], weights=(300.0, 100.0)))
    assert estimate.value == pytest.approx(math.exp(1.75))
    assert estimate.n == 2


def test_one_window_has_no_interval() -> None:
    estimate = perplexity(nll([1.0]))
    assert (estimate.low, estimate.high, estimate.n) == (None, None, 1)


def test_a_ruined_variant_overflows_to_infinity() -> None:
    assert perplexity(nll([800.0, 900.0])).value == math.inf


def test_nothing_to_average_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        ratio_of_sums([], [], "")


@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=6), min_size=2, max_size=8))
def test_clustered_mean_is_the_ratio_estimator(groups: list[list[float]]) -> None:
    """Against the cluster-robust regression on a constant, written out: (X'X)⁻¹ X'ee'X (X'X)⁻¹ · G/(G−1)."""
    values = [value for group in groups for value in group]
    clusters = [str(number) for number, group in enumerate(groups) for _ in group]
    mine = clustered_mean(Measurement("kl", 1, "nat", "lower", "paired", tuple(values), cluster_ids=tuple(clusters)))
    mean = float(np.mean(values))
    meat = sum(sum(value - mean for value in group) ** 2 for group in groups)
    error = math.sqrt(len(groups) / (len(groups) - 1) * meat) / len(values)
    half = float(scipy_stats.t.ppf(0.975, len(groups) - 1)) * error
    assert mine.n == len(groups)
    assert mine.value == pytest.approx(mean, abs=1e-9)
    assert mine.high == pytest.approx(mean + half, abs=1e-6)


def test_tokens_of_a_window_do_not_count_as_independent() -> None:
    """Each value a hundred times over in one window says no more than once."""
    once = clustered_mean(nll([1.0, 2.0, 4.0]))
    many = Measurement("kl", 1, "nat", "lower", "paired", (1.0, 2.0, 4.0) * 100, cluster_ids=("a", "b", "c") * 100)
    assert clustered_mean(many).high == pytest.approx(once.high)


@given(VALUES, st.floats(-5, 5))
def test_an_interval_holds_its_value_and_moves_with_it(values: list[float], shift: float) -> None:
    one, other = clustered_mean(nll(values)), clustered_mean(nll([value + shift for value in values]))
    assert one.low is not None
    assert one.high is not None
    assert one.low <= one.value <= one.high
    assert other.value == pytest.approx(one.value + shift, abs=1e-6)


def test_limits_cut_an_interval() -> None:
    assert Estimate(0.99, 0.9, 1.1, 4, "t").within(0, 1) == Estimate(0.99, 0.9, 1, 4, "t")


def test_quantile_interpolates() -> None:
    assert quantile([0, 1, 2, 3, 4], 0.5) == 2
    assert quantile([0.0, 1.0], 0.99) == pytest.approx(0.99)


def test_a_ratio_of_means_has_the_interval_of_the_jackknife() -> None:
    """Another way to the same error: each cluster left out once. The two agree where there are many clusters."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(5, 15, (2, 200)).astype(float)
    sums = sizes * rng.gamma(4.0, 0.25, (2, 200)) * np.array([[2.0], [1.0]])
    found = ratio_of_means((sums[0], sizes[0]), (sums[1], sizes[1]), "by hand")
    assert found is not None
    assert found.value == pytest.approx(sums[0].sum() / sizes[0].sum() / (sums[1].sum() / sizes[1].sum()))
    left_out = np.log((sums.sum(1, keepdims=True) - sums) / (sizes.sum(1, keepdims=True) - sizes))
    logs = left_out[0] - left_out[1]
    error = np.sqrt(199 / 200 * ((logs - logs.mean()) ** 2).sum())
    assert math.log(found.high / found.value) == pytest.approx(scipy_stats.t.ppf(0.975, 199) * error, rel=0.02)
    assert math.log(found.value / found.low) == pytest.approx(math.log(found.high / found.value))


def test_one_cluster_gives_a_ratio_without_an_interval() -> None:
    found = ratio_of_means(([4.0], [2.0]), ([1.0], [1.0]), "by hand")
    assert found is not None
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(2.0), None, None, 1)


def test_a_ratio_to_nothing_is_none() -> None:
    assert ratio_of_means(([4.0, 1.0], [2.0, 1.0]), ([0.0, 0.0], [1.0, 1.0]), "by hand") is None
