"""Speeds and their intervals: values worked out by hand, and the bootstrap against one written out in full."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness.stats import timing
from harness.stats.repeats import of_process
from harness.stats.timing import Timings, percentiles, ratio, resampled_medians, speed

SECONDS = st.floats(1e-4, 10)


def process(repetition: int, *seconds: float, steps: int = 1) -> Timings:
    """Iterations of ``steps`` timings each."""
    return Timings(repetition, seconds, tuple(str(place // steps) for place in range(len(seconds))))


def test_a_speed_is_the_median_over_processes_of_medians() -> None:
    found = speed([process(0, 1.0, 1.0, 99.0), process(1, 2.0, 2.0, 2.0), process(2, 4.0, 4.0, 0.01)], 8)
    assert (found.value, found.n) == (4.0, 3)


def test_the_interval_of_processes_is_the_t_interval_of_their_logarithms() -> None:
    found = speed([process(0, 1.0), process(1, 1.1), process(2, 1.3)], 10)
    logs = np.log([10 / 1.0, 10 / 1.1, 10 / 1.3])
    theirs = scipy_stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(theirs.low), math.exp(theirs.high)))
    assert "t-interval" in found.method


def test_the_interval_is_nowhere_within_the_bootstraps() -> None:
    """Five processes of one speed and four twice as fast: most of four in nine may be drawn."""
    speeds = [10.0] * 5 + [20.0] * 4
    found = speed([process(number, 1 / each) for number, each in enumerate(speeds)], 1)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 10
    assert found.high >= 20  # t alone ends at 18.0


def test_one_process_speaks_of_its_iterations_alone() -> None:
    found = speed([process(0, 1.0, 1.1, 1.2, 1.3, 1.4)], 12)
    assert found.low is not None
    assert found.high is not None
    assert 12 / 1.4 <= found.low < found.value == 10 < found.high <= 12 / 1.0
    assert found.method.endswith("what differs between processes is not in it")


def test_two_processes_have_no_interval() -> None:
    """Student's t with one degree of freedom would give 0.00003 to 140 million."""
    two = [process(0, 1 / 20), process(1, 1 / 200)]
    found = speed(two, 1)
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(110), None, None, 2)
    assert found.method == "2 processes: no interval"
    beside = ratio(two, [process(0, 1 / 10), process(1, 1 / 10)])
    assert (beside.value, beside.low, beside.high) == (pytest.approx(11), None, None)
    assert beside.method == "2 processes: no interval"
    three = speed([*two, process(2, 1 / 30)], 1)
    assert three.low is not None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(SECONDS, min_size=1, max_size=5), min_size=1, max_size=7))
def test_the_figure_lies_in_its_interval(processes: list[list[float]]) -> None:
    """There is one but for two processes, and for one process of one iteration."""
    made = [process(number, *seconds) for number, seconds in enumerate(processes)]
    expected = len(made) != 2 and (len(made) > 2 or len(processes[0]) > 1)
    for found in (speed(made, 5), ratio(made, list(reversed(made)))):
        assert (found.low is not None, found.high is not None) == (expected, expected)
        if found.low is not None and found.high is not None:
            assert found.low <= found.value <= found.high


def test_one_iteration_has_no_interval() -> None:
    found = speed([process(0, 1.0, 1.1, 1.2, steps=3)], 11)
    assert (found.value, found.low, found.high) == (pytest.approx(10), None, None)
    assert found.method == "one process, one iteration: no interval"


@pytest.mark.parametrize("processes", [[], [process(0)], [process(0, 1.0), process(1)]])
def test_no_timings_are_refused(processes: list[Timings]) -> None:
    with pytest.raises(ValueError, match="no timings"):
        speed(processes, 1)
    with pytest.raises(ValueError, match="no timings"):
        ratio([process(0, 1.0)], processes)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(SECONDS, min_size=1, max_size=4), min_size=1, max_size=6), st.integers(0, 99))
def test_resampled_medians_are_those_of_the_timings_drawn(iterations: list[list[float]], seed: int) -> None:
    """The same draws written out: every timing of an iteration as often as it was drawn, then numpy's median."""
    names = tuple(str(number) for number, each in enumerate(iterations) for _ in each)
    every = [each for iteration in iterations for each in iteration]
    found = resampled_medians(Timings(0, tuple(every), names), np.random.default_rng(seed))
    count = len(iterations)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=timing.WITHIN)
    sizes = [len(each) for each in iterations]
    written = [np.median(np.repeat(every, np.repeat(row, sizes))) for row in drawn]
    assert found == pytest.approx(written)


def test_medians_are_the_same_however_many_resamples_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = Timings(0, [1.0 + number % 7 for number in range(50)], [str(number // 2) for number in range(50)])
    together = resampled_medians(timings, np.random.default_rng(1))
    monkeypatch.setattr(timing, "AT_ONCE", 150)  # three at a time
    assert resampled_medians(timings, np.random.default_rng(1)).tolist() == together.tolist()


def test_memory_grows_with_the_timings_alone() -> None:
    """A process with 20,000 requests, each an iteration of its own, has an interval like any other."""
    count = 20_000
    requests = Timings(0, [1.0 + number / count for number in range(count)], list(map(str, range(count))))
    tracemalloc.start()
    found = speed([requests], 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6
    assert found.value == pytest.approx(1 / 1.5, rel=1e-3)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high < 1.02 * found.low


def test_what_slows_both_cancels_in_the_ratio() -> None:
    """A machine that slows down by a half between repetitions: the speeds scatter, the ratio does not."""
    ours = [process(number, 1.0 * slow, 1.01 * slow, 1.02 * slow) for number, slow in enumerate((1.0, 1.25, 1.5))]
    theirs = [process(number, 2.0 * slow, 2.02 * slow, 2.04 * slow) for number, slow in enumerate((1.0, 1.25, 1.5))]
    found = ratio(ours, theirs)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert found.n == 3
    alone = speed(ours, 1)
    assert alone.low is not None
    assert alone.high is not None
    assert alone.high > 2 * alone.low


def test_repetitions_that_only_one_side_has_are_not_paired() -> None:
    ours = [process(0, 1.0), process(1, 1.1), process(2, 50.0)]
    theirs = [process(0, 2.0), process(1, 2.2)]
    found = ratio(ours, theirs)
    assert found.n == 2
    assert found.value == pytest.approx((1 / 1.1) / np.median([1 / 2.0, 1 / 2.2]))
    assert ratio([process(0, 1.0)], [process(1, 2.0)]).low is None
    assert ratio([process(0, 1.0)], [process(1, 2.0)]).value == 2


def test_the_ratio_of_one_pair_speaks_of_iterations_alone() -> None:
    found = ratio([process(0, 1.0, 1.1, 1.2)], [process(0, 2.0, 2.1, 2.2)])
    assert found.low is not None
    assert found.high is not None
    assert 2.0 / 1.2 <= found.low < found.value == pytest.approx(2.1 / 1.1)
    assert found.value < found.high <= 2.2 / 1.0
    assert found.method.endswith("what differs between processes is not in it")


def test_a_report_made_twice_says_the_same() -> None:
    processes = [process(number, *(1 + 0.1 * number + 0.01 * place for place in range(5))) for number in range(3)]
    assert speed(processes, 7) == speed(list(processes), 7)
    assert speed(processes[:1], 7) == speed(processes[:1], 7)


def test_outliers_are_beyond_the_far_fences() -> None:
    """Quartiles 2 and 4 of 1 to 5: fences at -4 and 10."""
    assert process(0, 1.0, 2.0, 3.0, 4.0, 5.0).outliers == 0
    assert process(0, 2.0, 2.0, 3.0, 4.0, 4.0, *[3.0] * 4, 7.1, 30.0).outliers == 2
    assert process(0, 1.0, 1.0, 100.0).outliers == 0  # quartiles of three are made of what they judge


def test_percentiles_leave_a_fortieth_on_either_side() -> None:
    assert percentiles(np.arange(2001.0)) == pytest.approx((50, 1950))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=3, max_size=6))
def test_intervals_are_those_of_the_medians_drawn(pairs: list[tuple[float, float]]) -> None:
    """The same resamples written out, to the last bit: few processes are counted by their ranks instead."""
    ours, theirs = (np.array(side) for side in zip(*pairs, strict=True))
    drawn = np.random.default_rng(timing.SEED).integers(len(pairs), size=(timing.RESAMPLES, len(pairs)))
    one, other = (np.median(side[drawn], axis=1) for side in (ours, theirs))
    assert timing._resampled_ends(ours) == percentiles(one)
    assert timing._resampled_ends(ours, theirs) == percentiles(one / other)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=300))
def test_the_figure_of_a_process_is_numpys_median(values: list[float]) -> None:
    assert of_process(values) == np.median(values)
    assert math.isnan(of_process([*values, math.nan]))
