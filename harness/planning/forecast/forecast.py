"""The forecast of a sweep: of each run that is left, and of all together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from harness.core.job import VariantJob
from harness.core.record import Forecast, RunRecord
from harness.core.run import HourlyPrice, compared_within, turn_of
from harness.core.site import Speeds
from harness.planning.forecast.learned import Component, Learned
from harness.planning.forecast.side_by_side import Constraints, TimedRun, makespan_s
from harness.planning.forecast.work import Start, Starts, work
from harness.planning.plan import PlannedRun

QUANTILE = 1.2816
"""Of the standard normal distribution: a range to both sides holds four of five."""


@dataclass(frozen=True)
class Span:
    """Of a time or a price: what is as likely exceeded as not, and the range that holds four of five."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True)
class RunForecast:
    """Of one run. ``components`` are parts of its time; ``disk_bytes`` is what it leaves in the cache and the results.

    ``group`` is shared by runs whose times are uncertain for the same reasons. ``limit_s`` is the time limit of the
    run, None if it has none.
    """

    time: Forecast
    components: tuple[Component, ...]
    group: tuple[str, str]
    constraints: Constraints
    disk_bytes: int
    title: str = ""
    is_streamed: bool = False
    limit_s: float | None = None

    @property
    def mean_s(self) -> float:
        return sum(part.mean_s for part in self.components)

    @property
    def outlasts_its_limit(self) -> bool:
        """Whether it is likely to take longer than it may."""
        return self.limit_s is not None and self.time.expected_s > self.limit_s

    @property
    def surely_outlasts_its_limit(self) -> bool:
        """Whether even the low end of its range is longer than it may take."""
        return self.limit_s is not None and self.time.low_s > self.limit_s


@dataclass(frozen=True)
class SweepForecast:
    """Of the runs of a plan that are left, by run id, in the plan's order.

    ``lanes`` says of each machine how many runs it executes at once, and ``memory_bytes`` what these share; None where
    they share none. ``price`` is that of a machine's hour. ``lent_s`` is how long the sweep has all of its machines,
    None if nobody takes one away.
    """

    runs: Mapping[str, RunForecast]
    lanes: tuple[int, ...] = (1,)
    price: HourlyPrice | None = None
    lent_s: float | None = None
    memory_bytes: tuple[int | None, ...] | None = None

    @property
    def total_s(self) -> Span:
        """The time until the last run ends.

        Its relative spread is that of the runs' sum: uncertainty that they share adds up, and what is a run's own
        averages out.
        """
        mean_s = shared_s = own = 0.0
        groups: dict[tuple[str, str], float] = defaultdict(float)
        for run in self.runs.values():
            share = run.constraints.share(self.lanes)
            for part in run.components:
                mean_s += share * part.mean_s
                shared_s += share * part.shared_s
                groups[run.group] += share * part.group_s
                own += (share * part.own_s) ** 2
        if mean_s <= 0:
            return _span(0.0, 0.0)
        variance = shared_s**2 + sum(each**2 for each in groups.values()) + own
        timed = {run_id: TimedRun(run.mean_s, run.constraints) for run_id, run in self.runs.items()}
        last_s = makespan_s(timed, self.lanes, self.memory_bytes)
        return _span(last_s, variance * (last_s / mean_s) ** 2)

    @property
    def outlasts_its_machines(self) -> bool:
        """Whether it is likely to take longer than the sweep has its machines."""
        return self.lent_s is not None and self.total_s.expected > self.lent_s

    @property
    def cost(self) -> Span | None:
        """The price of all machines until the last run ends, in its currency; None without a price."""
        if self.price is None:
            return None
        per_s, time = len(self.lanes) * self.price.per_hour / 3600, self.total_s
        return Span(per_s * time.expected, per_s * time.low, per_s * time.high)

    @property
    def disk_bytes(self) -> int:
        return sum(run.disk_bytes for run in self.runs.values())

    @property
    def bases(self) -> Mapping[str, int]:
        """How many runs' forecasts rest on what: see ``harness.core.record.Forecast``."""
        found: dict[str, int] = defaultdict(int)
        for run in self.runs.values():
            found[run.time.basis] += 1
        return found


NOTHING = SweepForecast({})
"""Of a plan of which nothing is left."""


def forecast(
    left: Sequence[PlannedRun],
    planned: Sequence[PlannedRun],
    speeds: Speeds,
    records: Iterable[RunRecord],
    lanes: tuple[int, ...] = (1,),
    price: HourlyPrice | None = None,
    spawned: bool = False,
) -> SweepForecast:
    """Of the runs that are ``left`` of a plan, from a machine's speeds and its earlier records.

    ``spawned``: whether processes are started anew, not forked from a warm server. Records may show that they are.
    """
    learned = Learned(records, planned, speeds)
    before = {after.spec.run_id: run.spec for run, after in pairwise(planned)}
    starts = Starts(spawned or learned.spawned)
    made = {}
    for run in left:
        earlier = before.get(run.spec.run_id)
        shares = earlier is not None and earlier.run_id in made and run.spec.may_share_process(earlier)
        constraints = _constraints(run, {earlier.run_id} if shares and earlier is not None else set())
        made[run.spec.run_id] = _of_run(run, learned, speeds, starts.add(run.spec, shares), constraints)
    return SweepForecast(made, lanes, price)


def _constraints(run: PlannedRun, before: Set[str]) -> Constraints:
    """``before`` is the run in whose process it goes on, if it does.

    On a CPU a run that is content with no number of cores takes all of them, as in ``harness.execution.schedule``.
    """
    spec = run.spec
    together = compared_within(spec) if spec.job.repeated else None
    needs = frozenset(before | set(spec.needs.values()))
    devices = None if spec.device == "cpu" and spec.cores is None else spec.job.conditions.gpus
    return Constraints(spec.job.alone, devices, turn_of(spec), needs, together, run.needed_bytes)


def _of_run(run: PlannedRun, learned: Learned, speeds: Speeds, start: Start, constraints: Constraints) -> RunForecast:
    spec, by_arithmetic = run.spec, work(run, speeds, start)
    components = learned.components(run, by_arithmetic)
    variance = sum(part.shared_s**2 + part.group_s**2 + part.own_s**2 for part in components)
    span = _span(sum(part.mean_s for part in components), variance)
    of_case, of_kind = learned.seen(run)
    basis = "same" if of_case else "alike" if of_kind else "arithmetic"
    method = spec.method.name if isinstance(spec.job, VariantJob) else ""
    time = Forecast(span.expected, span.low, span.high, basis)  # type: ignore[arg-type]  # one of three
    return RunForecast(
        time=time,
        components=components,
        group=(spec.kind, method),
        constraints=constraints,
        disk_bytes=by_arithmetic.disk_bytes,
        title=spec.title,
        is_streamed=spec.job.conditions.residency == "streamed",
        limit_s=spec.limits.time_s,
    )


def _span(mean_s: float, variance: float) -> Span:
    """As if the time were log-normal with this mean and variance."""
    if mean_s <= 0:
        return Span(0.0, 0.0, 0.0)
    spread = math.sqrt(math.log1p(variance / mean_s**2))
    median_s = mean_s * math.exp(-(spread**2) / 2)
    return Span(median_s, median_s * math.exp(-QUANTILE * spread), median_s * math.exp(QUANTILE * spread))
