"""Figures of a server under load, from requests whose times are planted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.workload import Slo
from harness.stats.capacity import capacity, largest_level, next_level
from harness.stats.crossover import crossover
from harness.stats.estimate import Estimate
from harness.stats.serving import (
    Answered,
    in_bursts,
    lags_s,
    meets,
    misses,
    undriven,
    unfilled,
    waits_s,
    window_s,
)

SECONDS = st.floats(0.001, 10)


def request(
    name: str = "r", ttft_s: float = 0.2, gaps_s: tuple[float, ...] = (0.03,) * 4, **others: object
) -> Answered:
    """An answer whose tokens arrive one by one."""
    usual = {"sent_s": 0.0, "e2e_s": ttft_s + sum(gaps_s), "output_tokens": len(gaps_s) + 1}
    return Answered(name=name, ttft_s=ttft_s, gaps_s=gaps_s, **{**usual, **others})  # type: ignore[arg-type]


def test_the_time_per_token_leaves_out_the_first() -> None:
    assert request(ttft_s=5.0, gaps_s=(0.1, 0.3)).tpot_s == pytest.approx(0.2)
    assert request(gaps_s=()).tpot_s is None


@given(st.lists(SECONDS, min_size=1, max_size=30), SECONDS)
def test_the_time_per_token_is_the_mean_gap_however_tokens_are_grouped(gaps: list[float], first: float) -> None:
    grouped = request(ttft_s=first, gaps_s=tuple(gaps), output_tokens=3 * len(gaps) + 1)
    assert grouped.tpot_s == pytest.approx(np.mean(gaps) / 3)


@pytest.mark.parametrize(
    ("gaps", "tokens", "expected"),
    [
        ((0.03,) * 8, 9, False),  # one by one
        ((0.0, 0.0, 0.09, 0.0, 0.0, 0.09), 7, True),  # three at a time, each in an event of its own
        ((0.09,) * 3, 10, True),  # three in one event
        ((0.03, 0.02, 0.05, 0.01, 0.04), 6, False),  # uneven
        ((), 1, False),
    ],
)
def test_bursts_are_seen(gaps: tuple[float, ...], tokens: int, expected: bool) -> None:
    assert in_bursts([request(gaps_s=gaps, output_tokens=tokens)] * 3) is expected


def test_a_request_misses_each_limit_by_its_name() -> None:
    one = request(ttft_s=0.6, gaps_s=(0.02,) * 99 + (0.5,))
    assert misses(one, Slo(ttft_s=0.6, itl_s=0.02), False) == ()  # 99 of 100 gaps are within the limit
    assert misses(one, Slo(ttft_s=0.5, tpot_s=0.02, itl_s=0.01, e2e_s=1.0), False) == ("ttft", "tpot", "itl", "e2e")
    assert misses(one, Slo(itl_s=0.024), True) == ("itl",)  # its time per token is 0.0248 s
    assert misses(request(error="refused"), Slo(e2e_s=100), False) == ("error",)


def test_a_failed_request_counts_for_the_window_by_when_it_was_sent() -> None:
    found = [request(sent_s=1.0, error="refused"), request(sent_s=2.0, ttft_s=0.5, gaps_s=(0.5,))]
    assert window_s(found) == 2.0
    with pytest.raises(ValueError, match="no request was answered"):
        window_s(found[:1])


@given(st.lists(st.floats(0, 0.05), min_size=2, max_size=40), st.floats(0, 1000))
def test_a_client_that_is_late_alike_is_not_late(late: list[float], start: float) -> None:
    found = [request(sent_s=start + place + each, planned_s=float(place)) for place, each in enumerate(late)]
    assert max(lags_s(found)) == pytest.approx(max(late) - min(late), abs=1e-9)
    assert undriven([request()] * 3) is None


def test_a_rate_beyond_the_client_is_told() -> None:
    """Planned at 100 a second, sent at 50."""
    slow = [request(sent_s=place / 50, planned_s=place / 100) for place in range(100)]
    assert undriven(slow) == (
        "the client itself sent requests 0.94 s late, and at most 0.0495 s may be: it cannot drive them"
    )
    assert undriven([request(sent_s=place / 100 + 0.001, planned_s=place / 100) for place in range(100)]) is None


def closed(wait_s: float, count: int = 24, concurrent: int = 4, answer_s: float = 0.2) -> list[Answered]:
    """So many requests at a time, each sent ``wait_s`` after the one before it in its slot has ended."""
    starts = (number % concurrent * 0.01 + number // concurrent * (answer_s + wait_s) for number in range(count))
    return [request(f"r{number}", answer_s, (), sent_s=start) for number, start in enumerate(starts)]


def test_a_client_that_cannot_keep_requests_open_is_told() -> None:
    assert waits_s(closed(0.03), 4) == pytest.approx([0.03] * 20)
    assert unfilled(closed(0.03), 4) is None
    assert unfilled(closed(0.15), 4) == (
        "the client itself took 0.15 s (median) from an answer's end to the next request, and at most 0.05 s may "
        "pass: it cannot keep 4 open"
    )
    assert unfilled(closed(0.08, answer_s=2.0), 4) is None  # a twentieth of an answer
    assert unfilled(closed(0.15, answer_s=60.0), 4) is not None


def test_a_client_is_not_judged_by_some_late_requests_nor_by_those_without_an_answer() -> None:
    found = closed(0.01)
    late = [replace(each, sent_s=each.sent_s + 0.3) if number >= 20 else each for number, each in enumerate(found)]
    assert unfilled(late, 4) is None
    assert unfilled(found[:3], 4) is None  # no request had to wait for another


@pytest.mark.parametrize("wait_s", [0.01, 0.3])
def test_a_request_without_an_answer_does_not_hide_a_slow_client_and_makes_none(wait_s: float) -> None:
    """Its end is not known: each wait is at most the true one, and most are as long."""
    broken = [
        replace(each, error="timed out", e2e_s=0.0) if n in (3, 9) else each for n, each in enumerate(closed(wait_s))
    ]
    waits = waits_s(broken, 4)
    assert all(each <= wait_s + 1e-9 for each in waits)
    assert (unfilled(broken, 4) is None) == (wait_s == 0.01)
    silent = [replace(each, error="timed out", e2e_s=0.0) for each in closed(wait_s)]
    assert unfilled(silent, 4) is None


def test_requests_that_meet_an_slo_read_the_gaps_of_a_level_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level of 10,000 requests would read ten billion gaps if each request read those of all."""
    read: list[int] = []
    once = in_bursts
    monkeypatch.setattr("harness.stats.serving.in_bursts", lambda found: read.append(len(found)) or once(found))
    found = [request(ttft_s=0.1 * number) for number in range(20)]
    assert meets(found, Slo(ttft_s=0.95)) == [1.0] * 10 + [0.0] * 10
    assert read == [20]


LEVELS = (1.0, 2.0, 4.0, 8.0)


def met(*shares: float, requests: int = 20) -> list[list[float]]:
    return [[1.0] * round(share * requests) + [0.0] * round((1 - share) * requests) for share in shares]


@pytest.mark.parametrize(
    ("shares", "held", "following"),
    [
        ((1, 1, 0.9, 0.2), 4.0, 6.0),
        ((1, 0.5, 1, 1), 1.0, 1.5),  # what holds above a level that does not is luck
        ((0.5, 0.5, 0.5, 0.5), 0.0, 0.5),
        ((1, 1, 1, 1), 8.0, None),
    ],
)
def test_the_largest_load_is_the_last_before_one_that_fails(
    shares: tuple[float, ...], held: float, following: float | None
) -> None:
    assert largest_level(LEVELS, met(*shares), 0.9) == held
    assert next_level(LEVELS, met(*shares), 0.9, whole=False, least=0.25) == following
    assert next_level(LEVELS, met(1, 0.5, 1, 1), 0.9, whole=True, least=0.25) is None  # no number between 1 and 2


def test_halving_ends_where_a_level_would_take_too_long() -> None:
    """Nothing holds: of ten levels that may bisect, two are measured."""
    levels: list[float] = [1.0, 2.0]
    for _ in range(10):
        level = next_level(levels, met(*[0] * len(levels)), 0.9, whole=False, least=0.25)
        levels = sorted([*levels, level]) if level is not None else levels
    assert levels == [0.25, 0.5, 1.0, 2.0]


def test_bisecting_finds_where_a_server_ceases_to_hold() -> None:
    """It holds up to 5.3: each level in between halves what is open."""
    levels = list(LEVELS)
    for _ in range(6):
        level = next_level(levels, met(*(each <= 5.3 for each in levels)), 0.9, whole=False, least=0.25)
        assert level is not None
        levels = sorted([*levels, level])
    held = largest_level(levels, met(*(each <= 5.3 for each in levels)), 0.9)
    assert held <= 5.3 < held + 4 / 2**6


def test_the_interval_of_the_largest_load() -> None:
    sure = capacity(LEVELS, [met(1, 1, 0, 0)] * 3, 0.9)
    assert (sure.value, sure.low, sure.high, sure.n) == (2.0, 2.0, 4.0, 3)
    open_ended = capacity(LEVELS, [met(1, 1, 1, 1)] * 3, 0.9)
    assert (open_ended.value, open_ended.low, open_ended.high) == (8.0, 8.0, math.inf)
    none = capacity(LEVELS, [met(0, 0, 0, 0)], 0.9)
    assert (none.value, none.low, none.high) == (0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="no load"):
        capacity((), [], 0.9)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(1, 4))
def test_the_interval_holds_the_value(shares: list[float], processes: int) -> None:
    found = capacity(LEVELS, [met(*shares)] * processes, 0.9)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high


def test_the_interval_of_the_largest_load_covers_the_truth() -> None:
    """Attainment falls from 0.99 through 0.93 and 0.86: the truth is between the second level and the third."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        drawn = [[(random.random(100) < share).astype(float) for share in (0.99, 0.93, 0.86, 0.5)] for _ in range(5)]
        found = capacity(LEVELS, drawn, 0.9)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 2.0 and found.high >= 4.0
    assert covered >= 57


def times_as_fast(level: float, slope: float, scatter: float = 0.0, crossing: float = 24.0) -> Estimate:
    """A ratio that is linear in the logarithm of the load, with an interval of ``scatter`` on each side."""
    value = slope * math.log(level / crossing)
    low, high = math.exp(value - scatter), math.exp(value + scatter)
    return Estimate(math.exp(value), low, high, 3, "planted", "processes")


@given(st.floats(1.2, 55), st.booleans())
def test_a_planted_crossover_is_recovered(level: float, slower: bool) -> None:
    levels = (1.0, 4.0, 16.0, 64.0)
    slope = -0.1 if slower else 0.1
    found = crossover(levels, [times_as_fast(each, slope, crossing=level) for each in levels])
    assert found is not None
    assert found.slower is slower
    assert found.level == pytest.approx(level)
    assert (found.low, found.high) == pytest.approx((level, level))
    assert found.certain


@pytest.mark.parametrize("slope", [-0.1, 0.1])
def test_the_interval_of_a_crossover_holds_the_loads_at_which_either_may_be_faster(slope: float) -> None:
    """The ratio's interval holds 1 where its logarithm is within its half width: from 24 / e to 24 × e."""
    levels = (2.0, 8.0, 32.0, 128.0)
    found = crossover(levels, [times_as_fast(each, slope, 0.1) for each in levels])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((24 / math.e, 24 * math.e))
    wide = crossover(levels, [times_as_fast(each, slope, 1.0) for each in levels])
    assert wide is not None
    assert (wide.low, wide.high, wide.certain) == (0.0, math.inf, False)


def test_without_a_change_of_sign_there_is_no_crossover() -> None:
    for ratio in (0.8, 1.25):
        assert crossover((1, 2), [Estimate(ratio, None, None, 1, "none")] * 2) is None
    with pytest.raises(ValueError, match="above zero"):
        crossover((0, 2), [times_as_fast(1, 0.1), times_as_fast(2, 0.1)])


def test_a_ratio_without_an_interval_leaves_the_crossover_without_one() -> None:
    found = crossover((8, 64), [Estimate(value, None, None, 2, "too few") for value in (2.0, 0.5)])
    assert found is not None
    assert (found.level, found.certain) == (pytest.approx(math.sqrt(8 * 64)), False)
