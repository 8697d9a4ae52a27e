"""Draws have the spread that intervals promise, and what two variants have in common stays in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from harness.analysis.tradeoff import tradeoff
from harness.core.record import Measurement
from harness.stats.draws import FEWEST, MOST, Sampler, draws_for
from harness.stats.estimate import Estimate, clustered_mean, with_range
from harness.stats.influence import of_difference, of_mean
from harness.stats.pareto import front, front_shares

MANY = 40_000


def windows(values: Any, clusters: Any = (), weights: Any = ()) -> Measurement:
    ids = tuple(str(index) for index in range(len(values)))
    return Measurement(
        "kl", 1, "nat", "lower", "paired", tuple(values), {}, tuple(weights), ids, tuple(map(str, clusters))
    )


def test_influence_gives_the_standard_error() -> None:
    """√(G/(G−1) Σ part²) is the clustered error of the table's interval."""
    rng = np.random.default_rng(1)
    measured = windows(rng.exponential(1, 60), np.repeat(range(12), 5), rng.uniform(1, 3, 60))
    found, mean = of_mean(measured), clustered_mean(measured)
    assert found is not None
    assert sum(found.parts) == pytest.approx(0, abs=1e-12)
    error = float(np.sqrt(12 / 11) * np.linalg.norm(found.parts))
    assert mean.high is not None
    assert mean.high - mean.value == pytest.approx(t.ppf(0.975, 11) * error)


def test_influence_of_a_difference_is_that_of_common_items() -> None:
    ours, theirs = windows([1.0, 2.0, 4.0, 9.0]), windows([1.0, 1.0, 1.0])
    found = of_difference(ours, theirs)
    assert found is not None
    assert found.units == ("0", "1", "2")
    assert found.parts == pytest.approx([(0 - 4 / 3) / 3, (1 - 4 / 3) / 3, (3 - 4 / 3) / 3])


def test_one_window_has_no_influence_to_speak_of() -> None:
    assert of_mean(windows([1.0])) is None
    assert of_mean(windows([1.0, float("inf")])) is None


def test_draws_leave_the_interval_as_often_as_it_says() -> None:
    """2.5% to either side, however lopsided it is."""
    drawn = Sampler(MANY).column(Estimate(5.0, 4.0, 8.0, 10, "95%"))
    assert np.mean(drawn < 4) == pytest.approx(0.025, abs=0.004)
    assert np.mean(drawn > 8) == pytest.approx(0.025, abs=0.004)
    assert np.median(drawn) == pytest.approx(5, abs=0.03)


def test_a_ratio_is_drawn_as_a_logarithm() -> None:
    drawn = Sampler(MANY).column(Estimate(1.0, -0.5, 7.0, 10, "95%"), scale="log1p")
    assert drawn.min() > -1
    assert np.mean(drawn < -0.5) == pytest.approx(0.025, abs=0.004)
    assert np.mean(drawn > 7) == pytest.approx(0.025, abs=0.004)


def test_a_speed_of_two_processes_is_drawn_as_a_logarithm() -> None:
    """With one degree of freedom draws lie far out, but no speed is negative."""
    drawn = Sampler(MANY).column(Estimate(20.0, 5.0, 80.0, 2, "95%"), scale="log")
    assert drawn.min() >= 0
    assert np.mean((drawn >= 5) & (drawn <= 80)) == pytest.approx(0.95, abs=0.005)


def test_a_goodput_that_was_zero_in_a_process_is_drawn_although_zero_has_no_logarithm() -> None:
    drawn = Sampler(MANY).column(with_range(2.0, [0.0, 2.0, 3.0]), scale="log")
    assert np.isfinite(drawn).all()
    assert np.median(drawn) == pytest.approx(2, abs=0.03)


def test_a_range_of_processes_is_read_as_one() -> None:
    """Nine in ten 90% intervals of the draws hold the true speed, by simulated processes."""
    processes = np.random.default_rng(2).normal(100, 1, (1500, 3))
    inside = 0
    for row in processes:
        drawn = Sampler(200, seed=int(row[0] * 1e6)).column(with_range(float(np.median(row)), row.tolist()))
        low, high = np.quantile(drawn, [0.05, 0.95])
        inside += low <= 100 <= high
    assert 0.86 < inside / len(processes) < 0.96


def test_what_was_counted_or_measured_once_stays_put() -> None:
    luck = Sampler(10)
    for estimate in (
        Estimate(3, 3, 3, 1, "exact"),
        with_range(3, [3]),
        Estimate(3, 3, np.inf, 1, "least"),
    ):
        assert set(luck.column(estimate)) == {3.0}


def test_variants_share_the_luck_of_their_windows() -> None:
    rng = np.random.default_rng(3)
    hard = rng.exponential(1, 50)
    one, two = windows(hard + 0.01 * rng.standard_normal(50)), windows(1.1 * hard)
    luck = Sampler(MANY)
    first, second = (luck.column(clustered_mean(each), of_mean(each)) for each in (one, two))
    other = luck.column(clustered_mean(two))
    assert np.corrcoef(first, second)[0, 1] > 0.99
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.05
    assert np.mean(first < second) > 0.99  # a tenth better in every window; not seen if they were independent
    assert np.mean(first < other) < 0.9


def test_the_same_question_gets_the_same_answer() -> None:
    estimate = Estimate(1, 0, 2, 9, "95%")
    assert np.array_equal(Sampler().column(estimate), Sampler().column(estimate))


def test_many_variants_get_fewer_draws_but_some() -> None:
    assert (draws_for(0), draws_for(10), draws_for(10**6)) == (MOST, MOST, FEWEST)
    assert FEWEST < draws_for(600) < MOST


def test_shares_of_fronts_are_counted_draw_by_draw() -> None:
    rng = np.random.default_rng(4)
    axes = [rng.integers(0, 4, (50, 6)).astype(float) for _ in range(3)]
    fronts = [
        front([[axis[draw, point] for axis in axes] for point in range(6)], ("lower", "lower", "higher"))
        for draw in range(50)
    ]
    expected = [sum(point in each for each in fronts) / 50 for point in range(6)]
    assert front_shares(axes, ("lower", "lower", "higher")) == pytest.approx(expected)


def test_a_table_tells_how_likely_each_variant_is_on_the_front(bench: Any) -> None:
    (found,) = tradeoff(bench.sweep())
    rows = {row.label: row for row in found.rows}
    # As large as nf4, slower and further away; nothing beats gptq's quality at its size.
    assert rows["rtn 4-bit g64"].front_probability == pytest.approx(0, abs=0.05)
    assert rows["gptq 4-bit g64"].front_probability == 1
    assert rows["rtn 2-bit g64"].front_probability == 1  # the smallest of all
    assert rows["awq 4-bit g64"].front_probability is None
    assert 0.3 < rows["bnb-4bit fp4"].front_probability < 1  # type: ignore[operator]  # 0.75 to 0.74 of the speed of nf4


def test_without_speeds_the_front_is_that_of_the_mark(bench: Any, none: Any, rtn: Any) -> None:
    (found,) = tradeoff([bench.quality(none), bench.quality(rtn, 4.5, 0.02)])
    assert [row.front_probability for row in found.rows] == [1, 1]
