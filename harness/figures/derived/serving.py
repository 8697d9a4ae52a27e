"""A variant's server under load against others of the session, request by request in processes of one repetition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.core.record import Measurement, RunRecord
from harness.figures.derived.places import load_of
from harness.figures.table import Ladder, Load, Served, ServedAgainst
from harness.stats.capacity import capacity
from harness.stats.crossover import KNOWN_FASTER, KNOWN_SLOWER, Crossover, crossover
from harness.stats.estimate import Estimate
from harness.stats.repeats import over_processes
from harness.stats.timing import Timings, speed

FAILURES = "serving_failures"
"""Measured at every level of load, whether a request was answered or not."""
TIMES = "serving_e2e_s"
"""The times that decide which of two servers is faster: those of whole requests."""
TOKENS = "serving_output_tokens"
LOST = 0.05
"""The share of its requests that a server may leave without an answer before the times of the others say nothing.

One that refuses some has less to do, and answers the rest sooner: half of the load is no longer the same load. Up to
here, a request that one side did not answer counts with an infinite time, which hardly moves a median."""
At = Mapping[Load, Measurement]


def under_load(
    records: Sequence[RunRecord], baseline: Sequence[RunRecord], control: Sequence[RunRecord]
) -> tuple[tuple[Served, ...], tuple[Ladder, ...]]:
    """What the servers did at each level of load, the lowest first, and over all levels of each kind of load."""
    levels: dict[Load, set[float]] = {}
    for record in records:
        for load in _at(record, FAILURES):
            levels.setdefault(replace(load, level=None), set()).add(load.level or 0.0)
    ladders = {load: sorted(found) for load, found in levels.items()}
    sides = _Pairs.of(records, baseline), _Pairs.of(records, control)
    at = {
        place: Served(place, *(side.at(place) for side in sides))
        for load, rising in ladders.items()
        for place in (replace(load, level=level) for level in rising)
    }
    return (
        tuple(at[load] for load in sorted(at, key=_rising)),
        tuple(_ladder(records, load, rising, sides, at) for load, rising in ladders.items()),
    )


def _ladder(
    records: Sequence[RunRecord],
    load: Load,
    levels: Sequence[float],
    sides: tuple[_Pairs, _Pairs],
    at: Mapping[Load, Served],
) -> Ladder:
    slo = next((record.spec.serving.slo for record in records if record.spec.serving), None)
    baseline, control = sides
    places = [replace(load, level=level) for level in levels]
    return Ladder(
        load,
        slo,
        _capacity(records, load, levels, slo.share) if slo else None,
        _crossover({place: at[place].against_baseline for place in places if baseline.all_measured(place)}),
        _crossover({place: at[place].against_control for place in places if control.all_measured(place)}),
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


def _crossover(levels: Mapping[Load, ServedAgainst | None]) -> Crossover | None:
    """By the levels that all processes measured, and at which it is known which side was worse."""
    known = {
        place.level or 0.0: ratio
        for place, found in levels.items()
        if found is not None and (ratio := _faster(found)) is not None
    }
    return crossover(list(known), list(known.values())) if len(known) > 1 else None


def _faster(found: ServedAgainst) -> Estimate | None:
    """How many times as fast; where too many requests were lost, only that who lost more of them is the slower one."""
    if found.ratio is not None:
        return found.ratio
    if abs(found.answered - found.others_answered) <= LOST:
        return None
    return KNOWN_SLOWER if found.answered < found.others_answered else KNOWN_FASTER


@dataclass(frozen=True)
class _Pairs:
    """The records of two servers in each repetition that has both."""

    pairs: tuple[tuple[RunRecord, RunRecord], ...]

    @classmethod
    def of(cls, records: Sequence[RunRecord], others: Sequence[RunRecord]) -> _Pairs:
        theirs = {record.spec.repetition: record for record in others}
        return cls(tuple((each, theirs[each.spec.repetition]) for each in records if each.spec.repetition in theirs))

    def all_measured(self, load: Load) -> bool:
        """Whether both servers of every repetition were asked the same at this load."""
        return all(_asked_alike(*pair, load) for pair in self.pairs)

    def at(self, load: Load) -> ServedAgainst | None:
        """None if no repetition has both at this load."""
        pairs = [pair for pair in self.pairs if _asked_alike(*pair, load)]
        if not pairs:
            return None
        ours, theirs = ([_AnswersAtLoad.of(record, load) for record in side] for side in zip(*pairs, strict=True))
        shares = _answered(ours), _answered(theirs)
        timings = [
            Timings(mine.repetition, times, list(map(str, range(len(times)))))
            for mine, other in zip(ours, theirs, strict=True)
            if (times := mine.times_over(other))
        ]
        # of a process that answered less than half of its requests, the median is no time
        has_medians = bool(timings) and all(0 < each.median_s < math.inf for each in timings)
        told = min(shares) >= 1 - LOST and has_medians
        return ServedAgainst(speed(timings, 1) if told else None, *shares, _length(ours, theirs))


@dataclass(frozen=True)
class _AnswersAtLoad:
    """What one process answered at one level of load: the time and the tokens of each answer, and how many lack."""

    repetition: int
    times_s: Mapping[str, float]
    tokens: Mapping[str, float]
    failures: float

    @classmethod
    def of(cls, record: RunRecord, load: Load) -> _AnswersAtLoad:
        times, tokens = (_at(record, metric).get(load) for metric in (TIMES, TOKENS))
        return cls(record.spec.repetition, _by_item(times), _by_item(tokens), _at(record, FAILURES)[load].values[0])

    def times_over(self, other: _AnswersAtLoad) -> list[float]:
        """Of each request that either answered, the time over the other's; no answer takes infinitely long."""
        theirs = {name: other.times_s.get(name, math.inf) for name in dict.fromkeys((*self.times_s, *other.times_s))}
        return [self.times_s.get(name, math.inf) / time for name, time in theirs.items() if time]


def _answered(side: Sequence[_AnswersAtLoad]) -> float:
    """The share of the requests of all processes."""
    answered = sum(len(each.times_s) for each in side)
    asked = answered + sum(each.failures for each in side)
    return answered / asked if asked else 1.0


def _length(ours: Sequence[_AnswersAtLoad], theirs: Sequence[_AnswersAtLoad]) -> float | None:
    """How many times as many tokens our answers have as theirs, of the requests that both answered."""
    both = [
        (tokens, other.tokens[name])
        for mine, other in zip(ours, theirs, strict=True)
        for name, tokens in mine.tokens.items()
        if name in other.tokens
    ]
    written, base = (sum(side) for side in zip(*both, strict=True)) if both else (0.0, 0.0)
    return written / base if base else None


def _asked_alike(mine: RunRecord, other: RunRecord, load: Load) -> bool:
    ours, theirs = (_at(record, FAILURES).get(load) for record in (mine, other))
    return ours is not None and theirs is not None and ours.protocol.get("schedule") == theirs.protocol.get("schedule")


def _by_item(measurement: Measurement | None) -> Mapping[str, float]:
    return {} if measurement is None else dict(zip(measurement.item_ids, measurement.values, strict=True))


def _at(record: RunRecord, metric: str) -> At:
    return record.outcome.remember(
        ("loads", metric), lambda: {load_of(m): m for m in record.outcome.measured(metric) if m.values}
    )


def _rising(load: Load) -> tuple[str, str, str, float]:
    return load.arrival, load.prompts, load.answers, load.level or 0.0
