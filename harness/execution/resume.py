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

    ``planned`` are its runs without those that are not ``needed`` any more, and ``done`` the records, by run id, of the
    runs that it would not repeat.
    """

    records: tuple[RunRecord, ...]
    damaged: tuple[Damaged, ...]
    planned: tuple[PlannedRun, ...]
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
    planned = needed(planned, records)
    finished = done(planned, records, artifacts.outcome)
    return ResumePoint(records, found.damaged, planned, finished, left(planned, finished, artifacts.outcome))


def needed(planned: Sequence[PlannedRun], records: Sequence[RunRecord]) -> tuple[PlannedRun, ...]:
    """The runs without those that quantize for others to load, if all of those have been measured without it.

    Earlier versions quantized a streamed model in each of its runs.
    """
    well = _ended_well(records)

    def is_needed(spec: RunSpec) -> bool:
        if not spec.quantizes_for_loading or spec.run_id in well:
            return True
        reading = [run.spec.run_id for run in planned if spec.run_id in run.spec.needs.values() and not run.unsupported]
        return not reading or any(run_id not in well for run_id in reading)

    return tuple(run for run in planned if is_needed(run.spec))


def done(
    planned: Sequence[PlannedRun], records: Sequence[RunRecord], kept: Callable[[RunSpec], Outcome | None]
) -> dict[str, RunRecord]:
    """The records, by run_id, of the runs that need not execute again.

    They succeeded, and their artifact is still at the site (``kept`` returns its outcome) or no remaining run needs it.
    One whose sweep was ended while it measured the last of it is no such run.
    A baseline's speed that may have to be measured again beside others is among them, and what it needs is needed.
    """
    well = _ended_well(records)
    unmeasured = [run.spec for run in planned if run.spec.run_id not in well and not run.unsupported]
    groups = {compared_within(spec) for spec in unmeasured if spec.job.repeated}
    finished: dict[str, RunRecord] = {}
    read: set[str] = set()
    for run in reversed(planned):
        spec = run.spec
        if spec.run_id in well and (spec.run_id not in read or kept(spec) is not None):
            finished[spec.run_id] = well[spec.run_id]
            if not (spec.job.repeated and spec.is_baseline and compared_within(spec) in groups):
                continue
        if not run.unsupported:
            read.update(spec.needs.values())
    return finished


def _ended_well(records: Sequence[RunRecord]) -> dict[str, RunRecord]:
    return {
        record.spec.run_id: record for record in records if record.status == "ok" and not record.outcome.is_interrupted
    }


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
