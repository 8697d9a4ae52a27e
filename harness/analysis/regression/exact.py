"""Metrics without noise: what is stored, and how much of it is quantized. They do not depend on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.analysis.regression.cases import Case
from harness.analysis.regression.findings import Finding, Verdict
from harness.analysis.regression.matching import Match, differing
from harness.analysis.regression.pending import Gated, start
from harness.figures.figure import Figure
from harness.figures.statistic import Count, Measured
from harness.stats.estimate import Estimate

ROUNDING = 1e-12
"""Relative difference below which two ratios of the same counts count as equal."""


@dataclass(frozen=True)
class CountedValue:
    value: float
    unit: str
    direction: Literal["lower", "higher", "neither"]
    version: int


def exact(match: Match, asked: Gated) -> Iterator[Finding]:
    """One finding, if either side has the count."""
    base, head = (count(case, asked.figure) for case in (match.base, match.head))
    unlike: tuple[str, ...] = ()
    if base and head:
        base, head, unlike = _alike(match, asked.figure, base, head)
    one = base or head
    if one is None:
        return
    blank = start(match, asked, "", one.unit, asked.relative)
    blank = replace(blank, base=_value(base), head=_value(head), test="exact")
    if base is not None and head is not None:
        yield replace(blank, reasons=unlike) if unlike else _one(match, asked, blank, base, head)
    else:
        yield replace(blank, reasons=(f"{'HEAD' if base else 'BASE'} does not measure it",))


def _value(found: CountedValue | None) -> float | None:
    return None if found is None else found.value


def _one(match: Match, asked: Gated, blank: Finding, base: CountedValue, head: CountedValue) -> Finding:
    relative = blank.relative
    bars = (*match.bars, *differing([("metric version", base.version, head.version), ("unit", base.unit, head.unit)]))
    if bars:
        return replace(blank, reasons=bars)
    gap = head.value - base.value
    largest = max(abs(head.value), abs(base.value))
    change = (gap / base.value if base.value else None) if relative else gap
    beyond = (
        abs(gap) > asked.threshold * (min(abs(head.value), abs(base.value)) if relative else 1) + ROUNDING * largest
    )
    return replace(
        blank,
        verdict=_verdict(gap, base.direction) if beyond else "unchanged",
        change=None if change is None else Estimate(change, change, change, 1, "exact"),
        n=1,
        units="count",
        reasons=("exactly the same",) if not gap else ("a count without noise",),
    )


def _verdict(gap: float, direction: str) -> Verdict:
    return "improved" if (gap > 0) == (direction == "higher") else "regressed"


def count(case: Case, figure: Figure[Any]) -> CountedValue | None:
    """The figure of the successful run; None if it does not count it."""
    statistic = figure.statistic
    assert isinstance(statistic, Count)
    return _counted(statistic, figure, {name: case.found(name) for name in statistic.metrics})


def _counted(statistic: Count, figure: Figure[Any], found: Measured) -> CountedValue | None:
    if not found[statistic.metric]:
        return None
    value = statistic.count(found)
    if value is None:
        return None
    first = found[statistic.metric][0]
    return CountedValue(value, statistic.unit or first.unit, first.direction, first.version)


def _alike(
    match: Match, figure: Figure[Any], theirs: CountedValue, ours: CountedValue
) -> tuple[CountedValue, CountedValue, tuple[str, ...]]:
    """For a count that depends on conditions: under those that both sides have; a reason if there are none."""
    statistic = figure.statistic
    assert isinstance(statistic, Count)
    condition = statistic.condition
    if condition is None:
        return theirs, ours, ()
    sides = [{condition(m): m for m in case.found(statistic.metric)} for case in (match.base, match.head)]
    both = sides[0].keys() & sides[1].keys()
    if not both:
        return theirs, ours, ("no point of the grid that both measure",)
    one, other = (
        _counted(statistic, figure, {statistic.metric: [m for place, m in side.items() if place in both]})
        for side in sides
    )
    assert one is not None
    assert other is not None
    return one, other, ()
