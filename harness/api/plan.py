"""``harness.plan``: what a recipe would run on this machine, and which runs are already done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.api.forecasting import forecast_basis
from harness.api.workplace import Workplace
from harness.core.record import Damaged
from harness.core.site import Machine, Speeds
from harness.execution.local import local_site
from harness.execution.resume import resume_point
from harness.planning.forecast.forecast import NOTHING, SweepForecast
from harness.planning.plan import PlannedRun, hourly_price
from harness.planning.plan import plan as plan_at
from harness.planning.servers import ask_servers
from harness.recipe import Recipe, load_recipe
from harness.stacks import Stacks
from harness.storage.anonymizer import Anonymizer


def plan(
    recipe: Recipe, machine: Machine | None = None, stacks: Stacks | None = None, allow_leak: bool = False
) -> tuple[PlannedRun, ...]:
    """The runs of a recipe in the order in which they will execute on this machine.

    ``machine`` replaces this machine's hardware for planning, ``stacks`` replaces those in the user's cache.
    ``allow_leak`` lets calibration overlap the evaluation text.
    Raises RecipeError for what no model could use, and for a server that does not answer. What this model or this
    environment cannot use is planned as unsupported.
    """
    here = local_site(device=recipe.device if machine is None else machine.device)
    planned = plan_at(recipe, replace(here, hardware=machine, stacks=stacks or here.stacks), allow_leak)
    ask_servers(recipe, planned)
    return planned


@dataclass(frozen=True)
class PlanState:
    """The runs of a recipe, the run ids of those that ``qharness run`` would not repeat, and a forecast of the others.

    ``speeds`` are this machine's, None if nothing is left to run.
    """

    planned: tuple[PlannedRun, ...]
    done: frozenset[str] = frozenset()
    forecast: SweepForecast = NOTHING
    speeds: Speeds | None = None


def plan_with_state(
    recipe: str | Path,
    place: Workplace,
    allow_leak: bool = False,
    on_damage: Callable[[Damaged], None] = lambda damaged: None,
    on_unused_gpu: Callable[[str], None] = lambda problem: None,
    offline: bool = False,
) -> PlanState:
    """The runs of a recipe file, which of them are done, and how long the others will take.

    ``on_damage`` receives each damaged attempt of earlier runs, ``on_unused_gpu`` why torch cannot use this machine's
    GPU, if the runs are planned for the CPU because of that. The servers of runs that are left are
    asked whether they are there, unless ``offline``.
    """
    chosen = load_recipe(recipe)
    here = place.reachable_site(chosen.device)
    anonymizer = Anonymizer.here(chosen.folder_of(()), here.artifacts.root)
    machine = here.machine(chosen.device)
    if machine.gpu_problem:
        on_unused_gpu(anonymizer.message(machine.gpu_problem))
    planned = tuple(
        replace(run, reason=run.unsupported and anonymizer.message(run.unsupported))
        for run in plan_at(chosen, here, allow_leak)
    )
    store = place.store(here)
    resumed = resume_point(planned, store, here.spill_roots, here.artifacts)
    for damaged in resumed.damaged:
        on_damage(anonymizer.damaged(damaged))
    if not offline:
        ask_servers(chosen, resumed.left)
    done = frozenset(resumed.done)
    if not resumed.left:
        return PlanState(planned, done)
    basis = forecast_basis(machine, here.artifacts.root, store, chosen.name, resumed.records)
    expected = basis.forecast(resumed.left, planned, lanes=machine.gpus, price=hourly_price(chosen))
    return PlanState(planned, done, expected, basis.speeds)
