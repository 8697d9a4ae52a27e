"""Random effects over sources: against statsmodels, and against what a paired test says of two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm, ttest_ind
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.oneway import anova_oneway

from harness.stats.heterogeneity import effects_of_items, heterogeneity

NUMBERS = st.floats(-10, 10).map(lambda value: round(value, 3))


@pytest.mark.filterwarnings("ignore::Warning:statsmodels", "ignore:invalid value:RuntimeWarning:numpy")
@given(st.lists(st.tuples(NUMBERS, st.floats(0.01, 5)), min_size=2, max_size=8))
def test_it_is_what_statsmodels_computes(sources: list[tuple[float, float]]) -> None:
    effects, variances = map(np.array, zip(*sources, strict=True))
    found = heterogeneity(list(effects), list(variances))
    theirs = combine_effects(effects, variances, method_re="chi2", use_t=True)
    assert found.q == pytest.approx(theirs.q, rel=1e-9, abs=1e-9)
    assert found.p == pytest.approx(chi2.sf(found.q, len(effects) - 1), rel=1e-9)
    if theirs.tau2 <= 0:  # statsmodels goes on with a negative variance; it counts as none
        assert (found.i_squared, found.tau) == (0, 0)
        assert found.mean.value == pytest.approx(theirs.mean_effect_fe, rel=1e-9, abs=1e-9)
        return
    assert found.i_squared == pytest.approx(theirs.i2, abs=1e-9)
    assert found.tau**2 == pytest.approx(theirs.tau2, rel=1e-9, abs=1e-9)
    assert found.mean.value == pytest.approx(theirs.mean_effect_re, rel=1e-9, abs=1e-9)
    low, high = theirs.summary_frame().loc["random effect wls", ["ci_low", "ci_upp"]]
    assert (found.mean.low, found.mean.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=30))
def test_of_two_sources_it_is_the_paired_difference(pairs: list[tuple[float, float]]) -> None:
    one, other = map(np.array, zip(*pairs, strict=True))
    apart = one - other
    if apart.std() < 1e-6:
        return
    names = [str(number) for number in range(len(pairs))]
    found = heterogeneity(*effects_of_items([one, other], [1.0] * len(pairs), names))
    z = apart.mean() / (apart.std(ddof=1) / np.sqrt(len(apart)))
    assert found.q == pytest.approx(z**2, rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(2 * norm.sf(abs(z)), rel=1e-6, abs=1e-9)


GROUPS = st.lists(st.lists(NUMBERS, min_size=2, max_size=6), min_size=2, max_size=6)


@given(GROUPS)
def test_of_few_values_it_is_welchs_test(groups: list[list[float]]) -> None:
    samples = [np.array(each) for each in groups]
    if min(each.std() for each in samples) < 1e-3:
        return
    variances = [each.var(ddof=1) / len(each) for each in samples]
    found = heterogeneity([each.mean() for each in samples], variances, [len(each) - 1 for each in samples])
    theirs = anova_oneway(samples, use_var="unequal", welch_correction=True)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    if len(samples) == 2:
        assert found.p == pytest.approx(ttest_ind(*samples, equal_var=False).pvalue, rel=1e-6, abs=1e-12)


def test_few_processes_of_sources_that_measure_the_same_are_seldom_found_to_differ() -> None:
    draw = np.random.default_rng(0)

    def p() -> float:
        speeds = draw.normal(0, 1, (3, 3))
        return heterogeneity(speeds.mean(axis=1), speeds.var(axis=1, ddof=1) / 3, [2, 2, 2]).p

    assert 0.02 <= np.mean([p() < 0.05 for _ in range(1000)]) <= 0.08


def test_sources_that_measure_the_same_are_seldom_found_to_differ_and_others_nearly_always() -> None:
    draw = np.random.default_rng(0)
    names = [str(number) for number in range(60)]
    texts = draw.normal(3, 2, 60)  # the text varies far more than what sources add to it

    def p(shift: float) -> float:
        values = [texts + draw.normal(0, 0.01, 60) + shift * (source == 0) for source in range(4)]
        return heterogeneity(*effects_of_items(values, [1.0] * 60, names)).p

    assert 0.01 <= np.mean([p(0) < 0.05 for _ in range(400)]) <= 0.1
    assert np.mean([p(0.01) < 0.05 for _ in range(100)]) > 0.95


def test_what_has_no_noise_is_not_tested() -> None:
    with pytest.raises(ValueError, match="without a variance"):
        heterogeneity([1.0, 2.0], [0.1, 0.0])
    with pytest.raises(ValueError, match="two or more"):
        heterogeneity([1.0], [0.1])
