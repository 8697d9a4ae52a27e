"""The cases of one side: for each question, the current runs that answer it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from harness.analysis.selection import best_session, current, current_in_session
from harness.core.identity import digest
from harness.core.record import Measurement, RunRecord, Status
from harness.core.run import RunSpec
from harness.core.variant import labels
from harness.figures.row import reason


@dataclass(frozen=True)
class Case:
    """One question and the runs that answer it: one, or the repetitions of one session on one node.

    None on a side without it.
    """

    runs: tuple[RunRecord, ...]

    @property
    def spec(self) -> RunSpec:
        return self.runs[-1].spec

    @property
    def rank(self) -> int:
        """The priority of its counts among the cases of one variant: the lowest comes first."""
        rank = self.spec.job.row_rank
        assert rank is not None, "a case measures a row"
        return rank

    @cached_property
    def began(self) -> str:
        """When its first run began."""
        return min(run.started_at for run in self.runs)

    @cached_property
    def well(self) -> tuple[RunRecord, ...]:
        """The runs that ended well."""
        return tuple(run for run in self.runs if run.status == "ok")

    @cached_property
    def measured(self) -> tuple[RunRecord, ...]:
        """The runs whose figures count: those that ended well, and the levels of load below one that failed."""
        return tuple(run for run in self.runs if run.gives_figures)

    @property
    def trusted(self) -> tuple[RunRecord, ...]:
        """The runs whose timings may be used."""
        return tuple(run for run in self.measured if not run.outcome.suspicions)

    @property
    def status(self) -> Status:
        """``ok`` if any run succeeded."""
        return "ok" if self.well else self.runs[-1].status

    @property
    def reason(self) -> str:
        """Why it, or one of its runs, gave no figure."""
        failed = [run for run in self.runs if run.status != "ok"]
        return reason(failed[-1]) if failed else "ok"

    @property
    def identities(self) -> tuple[tuple[str, str, int], ...]:
        """What distinguishes its runs from all other runs of this question."""
        return tuple(sorted((run.session, run.started_at, run.spec.repetition) for run in self.runs))

    def found(self, metric: str) -> list[Measurement]:
        """The measurements of that name from the last run that gives figures; empty if none does."""
        return [m for run in self.measured[-1:] for m in run.outcome.measured(metric) if m.values]


def cases(records: Iterable[RunRecord]) -> dict[str, Case]:
    """By case id, from runs that measure a row: a failure to prepare their input counts as their failure.

    The newest run determines which libraries and machine count; older ones are history.
    """
    asked: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda each: (each.started_at, each.attempt)):
        if record.spec.job.row_rank is not None:
            asked.setdefault(record.spec.case_id, []).append(record)
    return {case_id: _case(found) for case_id, found in asked.items()}


def variant(spec: RunSpec) -> str:
    """The names of what a user compares from day to day."""
    return _names(spec.variant.name_key, spec.device)


@lru_cache(100_000)
def _names(variant: str, device: str) -> str:
    return digest([variant, device])


def named(found: Mapping[str, Case]) -> dict[str, str]:
    """By case id, the method's name that is unique within its model; the engine has its own column."""
    models: dict[tuple[str, str], list[RunSpec]] = {}
    for case in found.values():
        models.setdefault((case.spec.model.label, case.spec.engine_label), []).append(case.spec)
    return {
        spec.case_id: words[spec.variant.key, spec.decode_mode]
        for specs in models.values()
        for words in [labels(((spec.variant, spec.decode_mode) for spec in specs), without=("engine",))]
        for spec in specs
    }


def _case(found: Sequence[RunRecord]) -> Case:
    newest = found[-1].spec
    surroundings = _surroundings(newest)
    alike = [record for record in found if _surroundings(record.spec) == surroundings]
    if newest.job.repeated:
        return Case(best_session(current_in_session(alike)))
    return Case(current(alike)[-1:])


def _surroundings(spec: RunSpec) -> list[object]:
    """What a run id adds to the question, except the repetition."""
    where = spec.environment
    return [where.lock, where.hardware, dict(where.versions), where.method_version, dict(spec.needs)]
