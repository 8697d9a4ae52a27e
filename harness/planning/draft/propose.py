"""Proposes a recipe: methods that this model and machine can use, and as much measuring as time and disk allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import plugins as registry
from harness.core.job import VariantJob
from harness.core.site import Site
from harness.errors import UsageError
from harness.planning.draft.candidates import Purpose, candidates
from harness.planning.draft.draft import RecipeDraft
from harness.planning.draft.sizing import EFFORTS, SweepEffort, choose
from harness.planning.estimate.chosen import Chosen
from harness.planning.estimate.gpus import Budget
from harness.planning.forecast.forecast import NOTHING, SweepForecast
from harness.planning.plan import PlannedRun, plan
from harness.recipe import Recipe, recipe_at

LEAST = EFFORTS[0]


@dataclass(frozen=True)
class LeftOut:
    """A method that is not in the recipe, and why."""

    label: str
    reason: str


@dataclass(frozen=True)
class SweepRoom:
    """What a sweep may take: seconds, bytes of the disk that its cache is on, and memory of each variant's weights."""

    time_s: float
    disk_bytes: int
    budget: Budget | None = None


@dataclass(frozen=True)
class Proposal:
    """A recipe, the forecast of its runs, and what it leaves out."""

    draft: RecipeDraft
    forecast: SweepForecast
    left_out: tuple[LeftOut, ...]


Forecaster = Callable[[Sequence[PlannedRun], Sequence[PlannedRun]], SweepForecast]
"""The forecast of the first runs, which are among the second: those of the whole plan."""


def propose(
    draft: RecipeDraft,
    purpose: Purpose,
    named: Sequence[str],
    room: SweepRoom,
    place: Path,
    site: Site,
    forecast: Forecaster,
) -> Proposal:
    """The draft with methods and an effort that fit.

    ``named`` are the methods that the user asked for, as on the command line (none: those that suit the purpose), and
    ``place`` is where the recipe's file will be. Raises UsageError if the model cannot be measured here, and if not
    even one method fits, which says what to do.
    """
    sizer = _Sizer(draft, room, place, site, forecast)
    asked = candidates(purpose, named, draft.source)
    if not asked:
        raise UsageError("--methods: name one besides the unquantized baseline, which every sweep has")
    left_out: list[tuple[Chosen, str]] = []
    possible = [each for each in asked if sizer.runs_on_engine(each)]
    if named:
        reason = f"{draft.engine} does not read what it makes"
        left_out += [(each, reason) for each in asked if each not in possible]
    if not possible:
        raise UsageError(f"no method can be compared: {_listed(left_out) or f'none is known for {draft.engine}'}")
    unsupported = sizer.unsupported(possible)
    left_out += [(each, reason) for each, reason in zip(possible, unsupported, strict=True) if reason is not None]
    supported = [each for each, reason in zip(possible, unsupported, strict=True) if reason is None]
    if not supported:
        raise UsageError(f"no method can be compared: {_listed(left_out)}")
    sized = choose(supported, EFFORTS, sizer.obstacle)
    if not sized.kept:
        raise UsageError(_too_little(supported, sized.left_out, sizer, room))
    left_out += sized.left_out
    chosen = draft.having(sized.kept, sized.effort)
    return Proposal(chosen, sizer.forecast(chosen), tuple(LeftOut(each.label, why) for each, why in left_out))


def _too_little(
    supported: Sequence[Chosen], left_out: Sequence[tuple[Chosen, str]], sizer: _Sizer, room: SweepRoom
) -> str:
    """Why the smallest sweep does not fit, and the time that one of these methods needs."""
    needed_s = min(sizer.expected_s([each], LEAST) for each in supported)
    if needed_s > room.time_s:
        return (
            f"the smallest comparison, the baseline and one method on {LEAST.windows} windows of text, is expected to "
            f"take {_minutes(needed_s)} min here; give --minutes {_minutes(needed_s)}"
        )
    return f"no method fits: {_listed(left_out)}"


@dataclass(frozen=True)
class _Sizer:
    draft: RecipeDraft
    room: SweepRoom
    place: Path
    site: Site
    forecaster: Forecaster

    def runs_on_engine(self, chosen: Chosen) -> bool:
        """Whether the recipe's engine reads what the method makes."""
        return chosen.method.output_format in registry.engine(self.draft.engine).reads or chosen.method.stage == "none"

    def unsupported(self, chosen: Sequence[Chosen]) -> list[str | None]:
        """Of each method, why this model or machine cannot use it or the budget does not hold it.

        Raises UsageError if the unquantized baseline cannot be measured.
        """
        planned = self._plan(self.draft.having(chosen, LEAST))
        baseline = _obstacle([run for run in planned if run.spec.is_baseline])
        if baseline is not None:
            raise UsageError(
                f"{self.draft.source.ref.label}: the unquantized model cannot be measured here: {baseline}"
            )
        runs = [[run for run in planned if _is_of(run, each)] for each in chosen]
        return [_obstacle(each) or self._over_budget(each) for each in runs]

    def obstacle(self, chosen: Sequence[Chosen], effort: SweepEffort) -> str | None:
        """Why a sweep of these methods with that effort does not fit; None if it does."""
        found = self.forecast(self.draft.having(chosen, effort))
        if found.total_s.expected > self.room.time_s:
            minutes = _minutes(found.total_s.expected)
            return f"with it the sweep is expected to take {minutes} min, more than the {self.room.time_s / 60:g} given"
        if found.disk_bytes > self.room.disk_bytes:
            needed, free = found.disk_bytes / 1e9, self.room.disk_bytes / 1e9
            return f"with it the sweep is expected to write {needed:.1f} GB, and the disk has {free:.1f} GB free"
        return None

    def expected_s(self, chosen: Sequence[Chosen], effort: SweepEffort) -> float:
        return self.forecast(self.draft.having(chosen, effort)).total_s.expected

    def forecast(self, draft: RecipeDraft) -> SweepForecast:
        """Of all runs of a draft that can be made."""
        planned = self._plan(draft)
        supported = [run for run in planned if run.unsupported is None]
        return self.forecaster(supported, planned) if supported else NOTHING

    def _plan(self, draft: RecipeDraft) -> Sequence[PlannedRun]:
        recipe: Recipe = recipe_at(self.place, draft.data)
        return plan(recipe, self.site, models=[draft.source])

    def _over_budget(self, runs: Sequence[PlannedRun]) -> str | None:
        budget = self.room.budget
        needed = next((run.weight_bytes for run in runs if run.weight_bytes is not None), None)
        if budget is None or needed is None or needed <= budget.bytes:
            return None
        return f"its weights take {needed / 2**30:.1f} GiB, more than --budget {budget.name}"


def _is_of(run: PlannedRun, chosen: Chosen) -> bool:
    """Whether a run makes or measures a variant of the method with just these parameters."""
    job = run.spec.job
    if not isinstance(job, VariantJob) or run.spec.method.name != chosen.method.name:
        return False
    params: dict[str, object] = chosen.params.model_dump()
    return dict(run.spec.method.params) == params


def _obstacle(runs: Sequence[PlannedRun]) -> str | None:
    """Why nothing of a variant can be measured; None if anything can."""
    reasons = [run.unsupported for run in runs if run.spec.job.measures_variant]
    return None if None in reasons else next(iter(reasons), "nothing of it can be measured")


def _listed(left_out: Sequence[tuple[Chosen, str]]) -> str:
    return "; ".join(f"{each.label}: {reason}" for each, reason in left_out)


def _minutes(seconds: float) -> str:
    """Rounded up, so that as many minutes are enough."""
    return f"{math.ceil(seconds / 6) / 10:g}" if seconds < 600 else f"{math.ceil(seconds / 60)}"
