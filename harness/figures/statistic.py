"""Statistics: how the evidence of records becomes the one number of a figure, and by which test two are compared.

Reports, comparisons and histories take their numbers from here, so that one set of records gives one number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.core.record import Measurement, RunRecord
from harness.core.run import RunSpec
from harness.figures.derived.peaks import source_that_says_most
from harness.figures.derived.speeds import point_of
from harness.figures.table import GridPoint, VariantRow
from harness.stats.estimate import Estimate, clustered_mean, with_range
from harness.stats.repeats import of_process, over_processes

Measured = Mapping[str, Sequence[Measurement]]
"""The measurements of one run by the names of their metrics, those without values left out."""


def first(found: Sequence[Measurement]) -> Measurement | None:
    return next(iter(found), None)


def scored_text(spec: RunSpec, measurement: Measurement) -> str:
    """The text, protocol and context that a run scored; empty where it scored none."""
    scored = spec.perplexity
    return f"{scored.text.id}, {scored.protocol}, context {scored.context}" if scored else ""


@dataclass(frozen=True)
class Items:
    """One value per item. The same items of two sides are paired, clustered by document.

    ``estimate`` makes the figure of a measurement, and ``choose`` picks the measurement that stands for a run. ``unit``
    is that of the figure where it is not the measurement's, ``where`` says what was scored.
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

    def value(self, row: VariantRow, point: GridPoint | None = None) -> Estimate | None:
        chosen = self.choose(row.measurements(self.metric))
        return self.estimate(chosen) if chosen else None


@dataclass(frozen=True)
class PerProcess:
    """One number per process, at each point of the grid. Sets of processes are compared by a permutation test.

    ``of`` makes the number of one process, ``over`` the figure of several. ``counted`` leaves out measurements that are
    not the variant's own. ``timed`` figures are not taken from runs whose timings are suspect. ``pooled``: of each
    process the highest over all points and phases counts, by the one source that says most.
    """

    metric: str
    unit: str
    of: Callable[[Measurement], float] = lambda measurement: of_process(measurement.values)
    over: Callable[[Sequence[float]], float] = over_processes
    counted: Callable[[Measurement], bool] = lambda measurement: True
    timed: bool = True
    pooled: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def value(self, row: VariantRow, point: GridPoint | None = None) -> Estimate | None:
        """At a point of the grid (pooled: over all), by one source, with the range of the processes."""
        processes = [
            [m for m in _measured(run, self.metric) if self.counted(m)]
            for run in row.runs_that_ended_well
            if run.spec.job.repeated
        ]
        at_point = [[m for m in own if self.pooled or point_of(m) == point] for own in processes]
        sources = [str(m.protocol.get("source")) for own in at_point for m in own]
        source = source_that_says_most(sources) if self.pooled else next(iter(sources), None)
        by_process = [[self.of(m) for m in own if str(m.protocol.get("source")) == source] for own in at_point]
        numbers = [max(own) if self.pooled else own[0] for own in by_process if own]
        return with_range(self.over(numbers), numbers) if numbers else None


def summed(metric: str) -> Callable[[Measured], float | None]:
    """The sum of a metric's values; None where it was not measured."""
    return lambda found: sum(sum(each.values) for each in found[metric]) if found.get(metric) else None


def first_value(metric: str) -> Callable[[Measured], float | None]:
    """The first value of a metric; None where it was not measured."""
    return lambda found: found[metric][0].values[0] if found.get(metric) else None


@dataclass(frozen=True)
class Count:
    """A count without noise, which no machine changes: compared exactly.

    ``of`` makes it of a run's measurements of ``metric`` and of the metrics that are read ``also``. ``unit`` is the
    figure's where it is not that of the metric. Several runs of a variant give the same count, and it is taken once,
    unless it belongs to ``each_run``. Where it depends on conditions, ``condition`` names those of a measurement: two
    sides are compared by what both measured.
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

    def value(self, row: VariantRow, point: GridPoint | None = None) -> float | None:
        """Of the first run that counted it."""
        for run in row.runs_that_ended_well:
            measured = {
                name: [m for m in run.outcome.measurements if m.metric == name and m.values] for name in self.metrics
            }
            if measured[self.metric]:
                return self.count(measured)
        return None


def _measured(run: RunRecord, metric: str) -> list[Measurement]:
    return [found for found in run.outcome.measurements if found.metric == metric and found.values]
