"""Where a sweep resumes: which of its runs earlier ones have done, and which are left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.record import Damaged, Outcome, RunRecord
from harness.core.run import RunSpec, compared_within
from harness.core.site import Artifacts
from harness.planning.plan import PlannedRun
from harness.storage.spill import Saver
from harness.storage.store import Store


@dataclass(frozen=True)
class ResumePoint:
    """What a sweep would find before it executes anything: earlier records, damaged attempts, and what is left to do.

    ``done`` are the records, by run id, of the runs that it would not repeat.
    """

    records: tuple[RunRecord, ...]
    damaged: tuple[Damaged, ...]
    done: Mapping[str, RunRecord]
    left: tuple[PlannedRun, ...]


def resume_point(
    planned: Sequence[PlannedRun], store: Store, spill_roots: Sequence[Path], artifacts: Artifacts
) -> ResumePoint:
    """Where a sweep of these runs would resume. Reads only: what was spilled counts, and stays where it is."""
    recipe = planned[0].spec.recipe
    found = store.read(recipe)
    spilled = (each.record for each in Saver(store, spill_roots).spilled(recipe))
    records = (*found.records, *spilled)
    finished = done(planned, records, artifacts.outcome)
    return ResumePoint(records, found.damaged, finished, left(planned, finished, artifacts.outcome))


def done(
    planned: Sequence[PlannedRun], records: Sequence[RunRecord], kept: Callable[[RunSpec], Outcome | None]
) -> dict[str, RunRecord]:
    """The records, by run_id, of the runs that need not execute again.

    They succeeded, and their artifact is still at the site (``kept`` returns its outcome) or no remaining run needs it.
    One whose sweep was ended while it measured the last of it is no such run.
    A baseline's speed that may have to be measured again beside others is among them, and what it needs is needed.
    """
    well = {
        record.spec.run_id: record for record in records if record.status == "ok" and not record.outcome.is_interrupted
    }
    unmeasured = [run.spec for run in planned if run.spec.run_id not in well and not run.unsupported]
    groups = {compared_within(spec) for spec in unmeasured if spec.job.repeated}
    finished: dict[str, RunRecord] = {}
    needed: set[str] = set()
    for run in reversed(planned):
        spec = run.spec
        if spec.run_id in well and (spec.run_id not in needed or kept(spec) is not None):
            finished[spec.run_id] = well[spec.run_id]
            if not (spec.job.repeated and spec.is_baseline and compared_within(spec) in groups):
                continue
        if not run.unsupported:
            needed.update(spec.needs.values())
    return finished


def reusable(kept: Outcome | None) -> Outcome | None:
    """The outcome of an artifact that is here, if the run that made it need not be made again."""
    return None if kept is None or kept.is_interrupted else kept


def left(
    planned: Sequence[PlannedRun], finished: Collection[str], kept: Callable[[RunSpec], Outcome | None]
) -> tuple[PlannedRun, ...]:
    """The runs that a sweep will execute, unless one that they need fails.

    ``finished`` are the ids of those that are ``done``; ``kept`` returns the outcome of an artifact that is here.
    """
    supported = [run for run in planned if not run.unsupported]
    unmeasured = [run.spec for run in supported if run.spec.run_id not in finished]
    groups = {compared_within(spec) for spec in unmeasured if spec.job.repeated}

    def executes(spec: RunSpec) -> bool:
        if spec.run_id in finished:
            return spec.job.repeated and spec.is_baseline and compared_within(spec) in groups
        return reusable(kept(spec)) is None

    return tuple(run for run in supported if executes(run.spec))
