"""Statistics: how a figure is computed from the evidence of records, and which test compares two of them.

Reports, comparisons and histories take their numbers from here, so that one set of records gives one number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.core.record import Measurement, RunRecord
from harness.core.run import RunSpec
from harness.figures.derived.peaks import source_that_says_most
from harness.figures.derived.places import place_of
from harness.figures.table import GridPoint, Load, VariantRow
from harness.stats.estimate import Estimate, clustered_mean, with_range
from harness.stats.repeats import of_process, over_processes

Measured = Mapping[str, Sequence[Measurement]]
"""The measurements of one run by metric name, without those that have no values."""


def first(found: Sequence[Measurement]) -> Measurement | None:
    return next(iter(found), None)


def scored_text(spec: RunSpec, measurement: Measurement) -> str:
    """The text, protocol and context that a run scored; empty if it scored none."""
    scored = spec.perplexity
    return f"{scored.text.id}, {scored.protocol}, context {scored.context}" if scored else ""


@dataclass(frozen=True)
class Items:
    """One value per item. The same items of two sides are paired and clustered by document.

    ``estimate`` computes the figure of a measurement, and ``choose`` picks the measurement that represents a run.
    ``unit`` is the figure's unit if it differs from the measurement's; ``where`` says what was scored.
    """

    metric: str
    estimate: Callable[[Measurement], Estimate] = clustered_mean
    choose: Callable[[Sequence[Measurement]], Measurement | None] = first
    unit_of: Callable[[Measurement], str] = lambda measurement: measurement.unit
    where: Callable[[RunSpec, Measurement], str] = scored_text

    @property
    def unit(self) -> str:
        return ""

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def value(self, row: VariantRow, point: GridPoint | Load | None = None) -> Estimate | None:
        chosen = self.choose(row.measurements(self.metric))
        return self.estimate(chosen) if chosen else None


@dataclass(frozen=True)
class Unanswered:
    """What a process counts with at a load of which its server answered no request, so that it measured nothing.

    ``failures`` is the metric that counts the requests without an answer; ``number`` is the worst that a figure can be:
    infinite for a time, zero for a rate.
    """

    failures: str
    number: float


def silence(silent: int, processes: int) -> str:
    """How many of the processes answered no request, in words."""
    return f"{silent} of {processes} processes answered no request"


@dataclass(frozen=True)
class PerProcess:
    """One number per process, at each point of the grid or level of load. Sets of processes are compared by a
    permutation test.

    ``of`` computes the number of one process, ``over`` the figure of several. ``counted`` excludes measurements that
    are not the variant's own. ``timed`` figures are not taken from runs with suspect timings. ``pooled``: for each
    process, the highest value over all points and phases counts, from the source with the highest priority.
    ``unanswered`` is what a server counts with that answers nothing; None for a figure that does not depend on answers.
    ``step`` is the smallest change that the figure can show, in words, if it is not negligible.
    """

    metric: str
    unit: str
    of: Callable[[Measurement], float] = lambda measurement: of_process(measurement.values)
    over: Callable[[Sequence[float]], float] = over_processes
    counted: Callable[[Measurement], bool] = lambda measurement: True
    timed: bool = True
    pooled: bool = False
    unanswered: Unanswered | None = None
    step: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def measured(self, run: RunRecord) -> list[Measurement]:
        """What a process measured; at each load of which it answered nothing, a measurement in its place.

        Older records have no rates of such a load, newer ones rates of zero.
        """
        found = [m for m in _measured(run, self.metric) if self.counted(m)]
        if self.unanswered is None:
            return found
        silent = [m for m in _measured(run, self.unanswered.failures) if m.values[0] == m.protocol.get("requests")]
        if not silent:
            return found
        places, number = {place_of(m) for m in silent}, (self.unanswered.number,)
        return [
            *(m for m in found if place_of(m) not in places),
            *(replace(m, unit=self.unit, evidence="samples", values=number) for m in silent),
        ]

    def answered(self, measurement: Measurement) -> bool:
        """Whether it was measured; if not, it is in the place of one, because no request was answered."""
        return measurement.metric == self.metric

    def silent(self, found: Sequence[Measurement]) -> int:
        """How many of the processes, with one measurement of each, answered no request."""
        return sum(not self.answered(each) for each in found)

    def number(self, measurement: Measurement) -> float:
        """That of one process."""
        return self.of(measurement) if self.answered(measurement) else measurement.values[0]

    def figure(self, found: Sequence[Measurement]) -> float | None:
        """That of several processes, from one measurement of each.

        None if there is none, or if it is infinite: a time of which half of the processes or more answered nothing.
        """
        value = self.over([self.number(each) for each in found]) if found else math.inf
        return value if math.isfinite(value) else None

    def value(self, row: VariantRow, point: GridPoint | Load | None = None) -> Estimate | None:
        """At a place (pooled: over all points of the grid), by one source, with the range over processes."""
        found = self.by_process(row, point)
        value = self.figure(found)
        return None if value is None else with_range(value, [self.number(each) for each in found])

    def by_process(self, row: VariantRow, point: GridPoint | Load | None = None) -> list[Measurement]:
        """The measurement of each process of a row from which the figure at a place is taken."""
        processes = [self.measured(run) for run in row.runs_with_figures if run.spec.job.repeated]
        at_point = [[m for m in own if self.pooled or place_of(m) == point] for own in processes]
        sources = [str(m.protocol.get("source")) for own in at_point for m in own]
        source = source_that_says_most(sources) if self.pooled else next(iter(sources), None)
        by_source = [[m for m in own if str(m.protocol.get("source")) == source] for own in at_point]
        return [max(own, key=self.of) if self.pooled else own[0] for own in by_source if own]


def summed(metric: str) -> Callable[[Measured], float | None]:
    """The sum of a metric's values; None if it was not measured."""
    return lambda found: sum(sum(each.values) for each in found[metric]) if found.get(metric) else None


def first_value(metric: str) -> Callable[[Measured], float | None]:
    """The first value of a metric; None if it was not measured."""
    return lambda found: found[metric][0].values[0] if found.get(metric) else None


@dataclass(frozen=True)
class Count:
    """A count without noise that does not depend on the machine: compared exactly.

    ``of`` computes it from a run's measurements of ``metric`` and of the metrics in ``also``. ``unit`` is the figure's
    if it differs from that of the metric. Several runs of a variant give the same count, and it is taken once, unless
    it belongs to ``each_run``. If the count depends on conditions, ``condition`` names those of a measurement: two
    sides are compared under the conditions that both measured.
    """

    metric: str
    of: Callable[[Measured], float | None] | None = None
    also: tuple[str, ...] = ()
    unit: str = ""
    each_run: bool = False
    condition: Callable[[Measurement], tuple[str, ...]] | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric, *self.also)

    def count(self, found: Measured) -> float | None:
        return (self.of or summed(self.metric))(found)

    def value(self, row: VariantRow, point: GridPoint | Load | None = None) -> float | None:
        """From the first run that counted it."""
        for run in row.runs_with_figures:
            measured = {name: _measured(run, name) for name in self.metrics}
            if measured[self.metric]:
                return self.count(measured)
        return None


def _measured(run: RunRecord, metric: str) -> list[Measurement]:
    return [found for found in run.outcome.measured(metric) if found.values]
