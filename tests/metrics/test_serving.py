"""Gaps between tokens are left out where a record cannot have all of them, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_specs import UNDER_LOAD
from served_records import answers, measurements

from harness.core.record import Measurement
from harness.metrics.serving import GAPS, fitted
from harness.stats.serving import Answered

LOAD = replace(UNDER_LOAD, levels=(1.0, 8.0), requests=12)


def lengths(level: float) -> list[Answered]:
    """Answers of one to twelve tokens, as the model ends them."""
    every = answers(level, 0, lambda level, number, repetition: (0.2, 0.03), replace(LOAD, new_tokens=13))
    return [
        replace(each, gaps_s=tuple(0.03 + n / 1000 for n in range(number)), output_tokens=number + 1)
        for number, each in enumerate(every)
    ]


def made() -> list[Measurement]:
    return measurements({level: lengths(level) for level in LOAD.levels}, LOAD)


def count(found: list[Measurement]) -> int:
    return sum(len(m.values) for m in found)


def test_what_fits_stays_as_it_is() -> None:
    found = made()
    assert fitted(found, count(found)) == (found, 1)


@pytest.mark.parametrize("spare", [1, 40, 100])
def test_all_gaps_of_some_requests_stay_the_same_at_each_level(spare: int) -> None:
    found = made()
    kept, step = fitted(found, count(found) - spare)
    assert step > 1
    assert count(kept) <= count(found) - spare
    for before, after in zip(found, kept, strict=True):
        if before.metric != GAPS:
            assert after is before
            continue
        named = list(dict.fromkeys(before.cluster_ids))[::step]
        pairs = [pair for pair in zip(before.cluster_ids, before.values, strict=True) if pair[0] in named]
        assert list(zip(after.cluster_ids, after.values, strict=True)) == pairs
        assert after.protocol == before.protocol
    fewer, smaller = fitted(found, count(found) - spare)
    assert (fewer, smaller) == (kept, step)


def test_no_step_is_larger_than_it_must_be() -> None:
    found = made()
    kept, step = fitted(found, count(found) - 40)
    assert step == 2
    assert count(kept) > count(fitted(found, count(kept) - 1)[0])


def test_a_request_of_each_level_keeps_its_gaps_whatever_else_there_is() -> None:
    kept, _ = fitted(made(), 0)
    assert [len(set(m.cluster_ids)) for m in kept if m.metric == GAPS] == [1, 1]
