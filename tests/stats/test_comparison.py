"""Many comparisons judged together, and how many units one takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

from harness.stats.comparison import Comparison, fewest_units, holm
from harness.stats.estimate import Estimate

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def found(p: float | None, equivalence_p: float | None = None, **changes: object) -> Comparison:
    made = Comparison(
        metric="nll",
        unit="nat/token",
        better="lower",
        margin=0.01,
        alpha=0.05,
        effect=Estimate(0.02, 0.01, 0.03, 40, "t"),
        units="windows",
        design="paired",
        test="t-test",
        p=p,
        equivalence_p=equivalence_p,
        equivalence_interval=None,
        scatter=0.05,
        degrees=39.0,
        adjusted_p=p,
        adjusted_equivalence_p=equivalence_p,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_holm_is_the_step_down_procedure() -> None:
    """Written out: the smallest times 4, the next times 3, …, never below the one before, never above 1."""
    adjusted = [each.adjusted_p for each in holm([found(p) for p in (0.04, 0.01, 0.6, 0.03)])]
    assert adjusted == pytest.approx([0.09, 0.04, 0.6, 0.09])


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_that_of_statsmodels(seed: int) -> None:
    p_values = np.random.default_rng(seed).uniform(0, 0.2, 9).round(2).tolist()
    judged = holm([found(p, p / 2) for p in p_values])
    assert [each.adjusted_p for each in judged] == pytest.approx(multipletests(p_values, method="holm")[1])
    halves = [p / 2 for p in p_values]
    assert [each.adjusted_equivalence_p for each in judged] == pytest.approx(multipletests(halves, method="holm")[1])


@given(P_VALUES)
def test_holm_keeps_the_order_and_is_never_kinder_than_one_test_alone(p_values: list[float]) -> None:
    judged = holm([found(p) for p in p_values])
    for one in judged:
        assert one.p is not None
        assert one.adjusted_p is not None
        assert one.p <= one.adjusted_p <= min(1.0, len(p_values) * one.p) + 1e-12
        for other in judged:
            assert one.p > other.p or one.adjusted_p <= other.adjusted_p  # type: ignore[operator]


@given(P_VALUES, st.floats(0, 1))
def test_one_more_comparison_never_makes_another_surer(p_values: list[float], more: float) -> None:
    few = holm([found(p) for p in p_values])
    many = holm([found(p) for p in (*p_values, more)])
    for one, other in zip(few, many, strict=False):
        assert one.adjusted_p <= other.adjusted_p + 1e-12  # type: ignore[operator]


def test_verdicts_are_decided_together() -> None:
    alone = found(0.03)
    assert alone.verdict == "worse"
    assert [each.verdict for each in holm([alone] * 2)] == ["inconclusive"] * 2
    assert [each.verdict for each in holm([alone, found(0.001)])] == ["worse", "worse"]


def test_equivalence_too() -> None:
    alone = found(0.5, 0.03)
    assert alone.verdict == "equivalent"
    assert [each.verdict for each in holm([alone] * 2)] == ["inconclusive"] * 2


def test_what_could_not_be_tested_costs_the_others_nothing() -> None:
    untested = found(None, effect=Estimate(0.02, None, None, 2, "none"), scatter=None)
    judged = holm([found(0.04), untested])
    assert (judged[0].adjusted_p, judged[0].verdict) == (pytest.approx(0.04), "worse")
    assert (judged[1].adjusted_p, judged[1].verdict) == (None, "inconclusive")
    assert [each.tests for each in judged] == [1, 2]
    assert judged[0].detectable == found(0.04).detectable
    assert holm([]) == ()


def test_two_levels_cannot_be_judged_together() -> None:
    with pytest.raises(ValueError, match="share one alpha"):
        holm([found(0.01), found(0.01, alpha=0.01)])


def test_the_more_is_judged_the_more_units_it_takes() -> None:
    """Six flips reach 5%; judged among ten the first must reach 0.5%, which takes nine."""
    alone = found(0.03, scatter=1e-9, effect=Estimate(1.0, 0.9, 1.1, 6, "exact"))
    assert alone.units_needed == 6
    judged = holm([alone] * 10)[0]
    assert (judged.verdict, judged.units_needed) == ("inconclusive", 9)


@pytest.mark.parametrize(("design", "level", "fewest"), [("paired", 0.05, 6), ("paired", 0.01, 8), ("paired", 0.2, 6)])
def test_the_fewest_pairs(design: str, level: float, fewest: int) -> None:
    assert fewest_units(level, design) == fewest  # type: ignore[arg-type]


@pytest.mark.parametrize(("level", "fewest"), [(0.05, 4), (0.01, 5), (0.1, 3)])
def test_the_fewest_processes(level: float, fewest: int) -> None:
    """3 and 3 can be shared out in 20 ways, 4 and 4 in 70, 5 and 5 in 252."""
    assert fewest_units(level, "two samples") == fewest


@pytest.mark.parametrize("scatter", [0.01, 0.02, 0.1])
def test_units_needed_are_those_of_the_power_analysis(scatter: float) -> None:
    """Enough to find a difference of the margin in 80% of cases, by the noncentral t distribution, and few more.

    To show equivalence takes more: power 90% at each of two one-sided tests.
    """
    needed = found(0.5, scatter=scatter).units_needed
    difference = TTestPower().solve_power(effect_size=0.01 / scatter, alpha=0.05, power=0.8)
    equivalence = TTestPower().solve_power(effect_size=0.01 / scatter, alpha=0.05, power=0.9, alternative="larger")
    assert needed == pytest.approx(max(difference, equivalence), rel=0.02, abs=2)


def test_units_needed_of_two_samples_are_for_each() -> None:
    needed = found(0.5, scatter=0.02, design="two samples").units_needed
    expected = TTestIndPower().solve_power(effect_size=0.5, alpha=0.05, power=0.9, alternative="larger")
    assert needed == pytest.approx(expected, rel=0.02, abs=2)


def test_what_the_test_says_in_words() -> None:
    assert found(0.001).finding == "the difference is real (p = 0.001, t-test)"
    assert found(0.3).finding == "no difference was found (p = 0.3, t-test)"
    few = found(None, effect=Estimate(0.02, None, None, 2, "none"), scatter=None)
    assert few.finding == "no test is valid at n = 2 windows: it takes at least 6"
    assert holm([few] * 10)[0].finding == "no test is valid at n = 2 windows: it takes at least 9 among 10 tests"


@pytest.mark.parametrize(("level", "larger", "fewest"), [(0.05, 4, 4), (0.05, 5, 3), (0.01, 10, 3), (0.002, 10, 4)])
def test_the_fewest_processes_beside_more_of_the_other_side(level: float, larger: int, fewest: int) -> None:
    """Where one side has ten, 286 ways to take three of all are enough for 1%, and 1,001 to take four for 0.2%."""
    assert fewest_units(level, "two samples", larger) == fewest
