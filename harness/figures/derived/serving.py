"""A variant's server under load against the baseline's, request by request in processes of the same repetition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.core.record import Measurement, RunRecord
from harness.figures.derived.places import load_of
from harness.figures.table import Ladder, Load, Served
from harness.stats.capacity import capacity
from harness.stats.crossover import Crossover, crossover
from harness.stats.estimate import Estimate
from harness.stats.repeats import over_processes
from harness.stats.timing import Timings, speed

TIMES = "serving_e2e_s"
"""The times that decide which of two servers is faster: those of whole requests."""
At = Mapping[Load, Measurement]


def served(records: Sequence[RunRecord], baseline: Sequence[RunRecord]) -> tuple[Served, ...]:
    """One for each level of load, the lowest first. Requests that either side did not answer are left out."""
    loads = {load for record in records for load in _at(record, "serving_failures")}
    pairs = _pairs(records, baseline)
    return tuple(Served(load, _ratio(pairs, load)) for load in sorted(loads, key=_rising))


def ladders(records: Sequence[RunRecord], baseline: Sequence[RunRecord]) -> tuple[Ladder, ...]:
    """One for each kind of load."""
    levels: dict[Load, set[float]] = {}
    for record in records:
        for load in _at(record, "serving_failures"):
            levels.setdefault(replace(load, level=None), set()).add(load.level or 0.0)
    pairs = _pairs(records, baseline)
    return tuple(_ladder(records, pairs, load, sorted(found)) for load, found in levels.items())


def _ladder(
    records: Sequence[RunRecord],
    pairs: Sequence[tuple[int, At, At]],
    load: Load,
    levels: Sequence[float],
) -> Ladder:
    slo = next((record.spec.serving.slo for record in records if record.spec.serving), None)
    return Ladder(
        load,
        slo,
        _capacity(records, load, levels, slo.share) if slo else None,
        _crossover(pairs, load, levels),
    )


def _capacity(records: Sequence[RunRecord], load: Load, levels: Sequence[float], share: float) -> Estimate | None:
    """The median over processes, with the interval of the levels that all of them measured."""
    held = [own[load].values[0] for record in records if load in (own := _at(record, "serving_largest_load"))]
    met = [_at(record, "serving_met") for record in records]
    common = [level for level in levels if all(replace(load, level=level) in own for own in met)]
    if not held or not common:
        return None
    found = capacity(common, [[own[replace(load, level=each)].values for each in common] for own in met], share)
    value = over_processes(held)
    low, high = found.low, found.high
    return replace(
        found,
        value=value,
        low=None if low is None else min(low, value),
        high=None if high is None else max(high, value),
    )


def _crossover(pairs: Sequence[tuple[int, At, At]], load: Load, levels: Sequence[float]) -> Crossover | None:
    """By the levels that all processes measured."""
    common = [
        level for level in levels if all(_logs(ours, theirs, replace(load, level=level)) for _, ours, theirs in pairs)
    ]
    ratios = [found for level in common if (found := _ratio(pairs, replace(load, level=level))) is not None]
    return crossover(common, ratios) if len(ratios) > 1 else None


def _ratio(pairs: Sequence[tuple[int, At, At]], load: Load) -> Estimate | None:
    """How many times as fast: the pairs of one process are its timings, each a time over the baseline's."""
    timings = []
    for repetition, ours, theirs in pairs:
        logs = _logs(ours, theirs, load)
        if logs:
            timings.append(Timings(repetition, [math.exp(each) for each in logs], [str(i) for i in range(len(logs))]))
    return speed(timings, 1) if timings else None


def _logs(ours: At, theirs: At, load: Load) -> list[float]:
    """The logarithm of the time over the baseline's for each request that both answered; none for other requests."""
    mine, base = ours.get(load), theirs.get(load)
    if mine is None or base is None or mine.protocol.get("schedule") != base.protocol.get("schedule"):
        return []
    known = dict(zip(base.item_ids, base.values, strict=True))
    both = ((value, known.get(name)) for name, value in zip(mine.item_ids, mine.values, strict=True))
    return [math.log(value / other) for value, other in both if other]


def _pairs(records: Sequence[RunRecord], baseline: Sequence[RunRecord]) -> list[tuple[int, At, At]]:
    """The times of both sides in each repetition."""
    theirs = {record.spec.repetition: record for record in baseline}
    return [
        (record.spec.repetition, _at(record, TIMES), _at(theirs[record.spec.repetition], TIMES))
        for record in records
        if record.spec.repetition in theirs
    ]


def _at(record: RunRecord, metric: str) -> At:
    return record.outcome.remember(
        ("loads", metric), lambda: {load_of(m): m for m in record.outcome.measured(metric) if m.values}
    )


def _rising(load: Load) -> tuple[str, str, str, float]:
    return load.arrival, load.prompts, load.answers, load.level or 0.0
