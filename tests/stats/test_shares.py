"""Means of shares and what several answers per question say, held against independent computations."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from harness.core.record import Measurement
from harness.stats.rule import compare
from harness.stats.shares import by_sample, exact_ends, mean_share, pass_at, ratio, ratio_change, spread


def answers(rows: np.ndarray, clusters: bool = True, metric: str = "task_score") -> Measurement:
    """A value per question (row) and sample (column)."""
    questions, samples = rows.shape
    items = tuple(f"q:{question}#{sample}" for sample in range(samples) for question in range(questions))
    owners = tuple(item.partition("#")[0] for item in items) if clusters else ()
    values = tuple(rows.T.ravel().astype(float).tolist())
    return Measurement(metric, 1, "score", "higher", "paired", values, {}, (), items, owners)


def drawn(questions: int, samples: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.random((questions, samples)) < generator.beta(0.5, 0.5, questions)[:, None]


@pytest.mark.parametrize(("right", "count"), [(0, 20), (3, 20), (20, 20), (57, 100)])
def test_independent_answers_have_the_exact_interval(right: int, count: int) -> None:
    expected = stats.binomtest(right, count).proportion_ci(0.95, "exact")
    assert exact_ends(right, count) == pytest.approx((expected.low, expected.high))
    found = mean_share(answers(np.arange(count)[:, None] < right, clusters=False))
    assert (found.low, found.high, found.value) == pytest.approx((expected.low, expected.high, right / count))


def test_units_that_are_all_alike_have_no_interval_of_no_width() -> None:
    found = mean_share(answers(np.ones((10, 8))))
    assert found.value == 1
    assert found.low == pytest.approx(stats.binomtest(10, 10).proportion_ci(0.95, "exact").low)


def test_a_clustered_interval_is_exact_for_as_many_values_as_have_the_questions_error() -> None:
    """Beside a survey's textbook: n = p(1 − p) / variance, of fewer degrees of freedom by the ratio of quantiles."""
    rows = drawn(40, 8)
    found = mean_share(answers(rows))
    means = rows.mean(axis=1)
    p, variance = means.mean(), stats.sem(means) ** 2
    n = p * (1 - p) / variance * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 39)) ** 2
    low, high = stats.beta.ppf(0.025, p * n, n - p * n + 1), stats.beta.ppf(0.975, p * n + 1, n - p * n)
    assert (found.value, found.low, found.high) == pytest.approx((p, low, high))
    half = stats.t.ppf(0.975, 39) * stats.sem(means)
    assert (found.low, found.high) == pytest.approx((p - half, p + half), abs=0.02), "near the t-interval in the middle"
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_share(answers(2 * np.ones((2, 2))))


def test_one_value_that_differs_does_not_narrow_the_interval() -> None:
    none, one = np.zeros((8, 8)), np.zeros((8, 8))
    one[3, 5] = 1
    assert mean_share(answers(none)).high == pytest.approx(1 - 0.025 ** (1 / 8))
    found = mean_share(answers(one))
    assert 0 < found.low < 1 / 64
    assert found.high > 0.08, "a t-interval ends at 0.053"


@pytest.mark.parametrize(("questions", "k", "truth"), [(8, 4, 1 - 105 / 384), (16, 4, 1 - 105 / 384), (30, 1, 0.5)])
def test_intervals_of_few_skewed_questions_hold_the_truth(questions: int, k: int, truth: float) -> None:
    """Of 400 draws at least 92%: a t-interval of 8 questions' pass@4 holds it in 88%. E(1 − p)⁴ is 105 / 384."""
    held = 0
    for seed in range(400):
        passed = pass_at(answers(drawn(questions, 8, seed)), k)
        assert passed is not None
        found = mean_share(passed)
        held += found.low <= truth <= found.high
    assert held / 400 >= 0.92


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_all_sets_of_k_answers_with_a_right_one(k: int) -> None:
    rows = drawn(12, 5)
    found = pass_at(answers(rows), k)
    assert found is not None
    expected = [np.mean([any(row[list(chosen)]) for chosen in combinations(range(5), k)]) for row in rows]
    assert found.values == pytest.approx(expected)
    assert found.item_ids == tuple(f"q:{question}" for question in range(12))
    assert found.cluster_ids == ()
    assert pass_at(answers(rows), 6) is None
    assert pass_at(answers(rows / 2), 2) is None, "a score that is not right or wrong"


def test_pass_at_k_keeps_clusters_of_questions() -> None:
    score = answers(drawn(6, 3))
    days = tuple(f"day {int(item.split(':')[1].partition('#')[0]) // 2}" for item in score.item_ids)
    found = pass_at(replace(score, cluster_ids=days), 2)
    assert found is not None
    assert found.cluster_ids == ("day 0", "day 0", "day 1", "day 1", "day 2", "day 2")


def test_each_seed_has_its_mean_and_their_spread_is_a_standard_deviation() -> None:
    rows = drawn(30, 4)
    means = by_sample(answers(rows))
    assert means == pytest.approx(rows.mean(axis=0))
    weights = tuple(1.0 + (int(item[2:].partition("#")[0]) == 0) for item in answers(rows).item_ids)
    weighted = by_sample(replace(answers(rows), weights=weights))
    assert weighted == pytest.approx(np.average(rows, axis=0, weights=[2, *[1] * 29])), "as the score itself is"
    assert spread(means) == pytest.approx(np.std(rows.mean(axis=0), ddof=1))
    with pytest.raises(ValueError, match="no spread"):
        spread(means[:1])


def test_a_verdict_on_samples_has_the_error_of_statsmodels_clustered_regression() -> None:
    sm = pytest.importorskip("statsmodels.api")
    ours, theirs = answers(drawn(45, 8, 1)), answers(drawn(45, 8, 2))
    found = compare(ours, theirs, 0.01, "higher")
    gaps = np.asarray(ours.values) - np.asarray(theirs.values)
    groups = np.unique(ours.cluster_ids, return_inverse=True)[1]
    fit = sm.OLS(gaps, np.ones((len(gaps), 1))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    half = stats.t.ppf(0.975, 44) * float(fit.bse[0])
    assert found.effect.value == pytest.approx(fit.params[0])
    assert (found.effect.low, found.effect.high) == pytest.approx(
        (found.effect.value - half, found.effect.value + half), abs=1e-9
    )
    assert (found.units, found.effect.n) == ("clusters", 45)


def test_a_ratio_and_its_change_have_the_errors_that_resampling_questions_gives() -> None:
    generator = np.random.default_rng(3)
    right, base_right = (drawn(200, 4, seed) for seed in (1, 2))
    tokens, base_tokens = (generator.gamma(4, 50, (200, 4)) * (2 - each) for each in (right, base_right))
    given = [answers(each) for each in (tokens, right, base_tokens, base_right)]
    found, change = ratio(given[0], given[1]), ratio_change(*given)
    assert found is not None
    assert change is not None
    assert found.value == pytest.approx(tokens.sum() / right.sum())
    assert change.value == pytest.approx(tokens.sum() / right.sum() / (base_tokens.sum() / base_right.sum()) - 1)
    picks = generator.integers(0, 200, (4000, 200))
    sums = [each[picks].sum(axis=(1, 2)) for each in (tokens, right, base_tokens, base_right)]
    assert (found.high - found.low) / 2 == pytest.approx(1.97 * np.std(sums[0] / sums[1]), rel=0.06)
    logs = np.log(sums[0] / sums[1] / (sums[2] / sums[3]))
    assert (np.log1p(change.high) - np.log1p(change.low)) / 2 == pytest.approx(1.97 * np.std(logs), rel=0.06)
    assert ratio(given[0], answers(np.zeros((200, 4)))) is None
    assert ratio_change(given[0], given[1], given[2], answers(np.zeros((200, 4)))) is None
    assert ratio_change(*given[:2], answers(tokens[:9]), answers(base_right[:9])) is None, "other questions"
