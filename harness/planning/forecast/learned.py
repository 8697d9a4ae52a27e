"""What runs that were measured say about those that were not: their times compared with the arithmetic's.

The ratio of a measured time to the arithmetic's differs by kind of run, method, model and case. Runs of a case count
most for it, then those of its method, then of its kind (``harness.stats.nested``). Runs of a model that was read layer
by layer are a kind of their own: no id tells them from those of a model that was loaded whole.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median

from pydantic import ValidationError

from harness.core.job import VariantJob
from harness.core.record import RunRecord
from harness.core.run import RunSpec
from harness.core.site import Speeds
from harness.errors import UsageError
from harness.planning.forecast.work import Starts, Work, work
from harness.planning.plan import PlannedRun
from harness.stats.nested import NestedMeans, Path

OUTSIDE = frozenset({"import", "verify"})
"""Phases of a run that belong to its starting."""
IMPORTED_AT_ONCE = 2.0
"""In times that Python takes to start: imports that take longer were not done before."""
FLOOR_S = 0.1
"""Added to both times of a ratio: below this, nothing about a time says anything about another."""
STARTING_SPREADS, COMPUTING_SPREADS = (0.4, 0.3, 0.2, 0.4, 0.1, 0.1), (0.6, 0.3, 0.5, 0.6, 0.3, 0.15)
"""How far ratios differ, as standard deviations of their logarithm: all from one, and by stack, kind, method, model and
case."""
SHARED = 2
"""So many names of a path: uncertainty up to there is one for all runs of a sweep, below it each group has its own."""
NOISE = 0.15
"""The same between two runs of one case."""


@dataclass(frozen=True)
class Component:
    """A part of a run's time in seconds: its mean, and three parts of its standard deviation.

    ``shared_s`` is common to all runs of a sweep, ``group_s`` to those of one kind and method, ``own_s`` to none.
    """

    mean_s: float
    shared_s: float
    group_s: float
    own_s: float


class Learned:
    """The records of this machine beside the arithmetic of their runs."""

    def __init__(self, records: Iterable[RunRecord], planned: Sequence[PlannedRun], speeds: Speeds) -> None:
        known = _Known(planned)
        starting, computing = [], []
        of_session: dict[str, list[tuple[RunRecord, PlannedRun, Work]]] = defaultdict(list)
        for record in sorted(records, key=lambda record: record.started_at):
            run, fact = known.find(record.spec), measured(record)
            if run is not None and fact is not None:
                of_session[record.session].append((record, run, fact))
        spawned = {
            session: _are_spawned([record for record, _, _ in each], speeds) for session, each in of_session.items()
        }
        self.spawned = next(reversed(spawned.values()), False)
        """Whether the processes of the last sweep were started anew, not forked from a warm server."""
        starts = {session: Starts(found) for session, found in spawned.items()}
        for record, run, fact in chain.from_iterable(of_session.values()):
            path, shared = _path(record.spec), record.outcome.fact("process_shared") is not None
            try:
                made = work(run, speeds, starts[record.session].add(record.spec, shared))
            except (UsageError, ValidationError):  # a plugin that is not installed, a parameter that it had
                continue
            starting.append((path, _ratio(fact.starting_s, made.starting_s)))
            if known.has_model_of(record.spec):
                computing.append((path, _ratio(fact.computing_s, made.computing_s)))
        self._starting = NestedMeans(starting, STARTING_SPREADS, NOISE)
        self._computing = NestedMeans(computing, COMPUTING_SPREADS, NOISE)

    def components(self, run: PlannedRun, made: Work) -> tuple[Component, Component]:
        """The time outside of the run's own phases, and in them, given the arithmetic's."""
        path = _path(run.spec)
        return (_component(self._starting, path, made.starting_s), _component(self._computing, path, made.computing_s))

    def seen(self, run: PlannedRun) -> tuple[int, int]:
        """How many runs of its case, and of its kind, were measured."""
        counts = self._computing.counts(_path(run.spec))
        return counts[-1], counts[2]


class _Known:
    """The sizes that a plan knows: of a record's model and weights. Of another model only starting tells something."""

    def __init__(self, planned: Sequence[PlannedRun]) -> None:
        self._by_run = {run.spec.run_id: run for run in planned}
        self._by_case = {run.spec.case_id: run for run in planned}
        self._sizes = {model.content: run for run in planned for model in run.spec.job.models[:1]}
        self._place = {(run.spec.hardware, run.spec.device) for run in planned}

    def has_model_of(self, spec: RunSpec) -> bool:
        """Whether the run is of a planned model, or of none."""
        return all(model.content in self._sizes for model in spec.job.models[:1])

    def find(self, spec: RunSpec) -> PlannedRun | None:
        """A planned run for the record's spec, without a size if its model is not planned; None of another machine."""
        if (spec.hardware, spec.device) not in self._place:
            return None
        same = self._by_run.get(spec.run_id) or self._by_case.get(spec.case_id)
        if same is not None:
            return replace(same, spec=spec)  # as it was made: whole, or layer by layer
        if not spec.job.models:
            return PlannedRun(spec)
        like = self._sizes.get(spec.job.models[0].content)
        return PlannedRun(spec, size=like.size if like else None)


def _path(spec: RunSpec) -> Path:
    method = spec.method.name if isinstance(spec.job, VariantJob) else ""
    model = spec.job.models[0].content if spec.job.models else ""
    return spec.stack, f"{spec.kind} {spec.job.conditions.residency}", method, model, spec.case_id


def _are_spawned(session: Sequence[RunRecord], speeds: Speeds) -> bool:
    """Whether most runs of a sweep imported their libraries themselves. Those that were forked found them imported."""
    times = [phase.wall_s for record in session for phase in record.outcome.phases if phase.name == "import"]
    return bool(times) and median(times) > IMPORTED_AT_ONCE * speeds.start_s


def measured(record: RunRecord) -> Work | None:
    """The times of a run that was made; None if it failed, or another sweep's artifact was taken."""
    phases = record.outcome.phases
    computing_s = sum(phase.wall_s for phase in phases if phase.name not in OUTSIDE)
    if record.status != "ok" or not phases or sum(phase.wall_s for phase in phases) > record.wall_s:
        return None
    return Work(record.wall_s - computing_s, computing_s, 0)


def _ratio(seen_s: float, made_s: float) -> float:
    """The logarithm of a measured time's ratio to the arithmetic's."""
    return math.log((seen_s + FLOOR_S) / (made_s + FLOOR_S))


def _component(means: NestedMeans, path: Path, made_s: float) -> Component:
    found, shared = means.estimate(path), means.estimate(path[:SHARED]).variance
    mean_s = (made_s + FLOOR_S) * math.exp(found.mean + (found.variance + NOISE**2) / 2)  # of a log-normal
    group = max(found.variance - shared, 0.0)
    shared_s, group_s, own_s = (mean_s * math.sqrt(math.expm1(variance)) for variance in (shared, group, NOISE**2))
    return Component(max(mean_s - FLOOR_S, 0.0), shared_s, group_s, own_s)
