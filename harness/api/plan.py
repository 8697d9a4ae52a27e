"""``harness.plan``: what a recipe would run on this machine; and for the command also where else, and what is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from harness.api.forecasting import forecast_basis
from harness.api.workplace import USUAL_PLACE, Workplace
from harness.core.site import HERE, Machine, Node, Speeds
from harness.execution.events import DamageFound, Event, GpuUnused, Waiting
from harness.execution.executors import THIS_MACHINE, ExecutorChoice, open_executor
from harness.execution.local import local_site
from harness.execution.resume import resume_point
from harness.execution.schedule import Schedule
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
class PlanSettings:
    """How a recipe is planned; fields are those of ``RunSettings``. ``offline`` asks no server whether it is there."""

    place: Workplace = USUAL_PLACE
    allow_leak: bool = False
    offline: bool = False
    executor: ExecutorChoice = THIS_MACHINE
    on_event: Callable[[Event], None] = lambda event: None


@dataclass(frozen=True)
class PlanState:
    """The runs of a recipe, the run ids of those that ``qharness run`` would not repeat, and a forecast of the others.

    ``speeds`` are those that the forecast starts from, this machine's or the first node's; None if nothing is left to
    run. ``nodes`` are those that would execute the runs.
    """

    planned: tuple[PlannedRun, ...]
    done: frozenset[str] = frozenset()
    forecast: SweepForecast = NOTHING
    speeds: Speeds | None = None
    nodes: Sequence[Node] = (HERE,)


def plan_with_state(recipe: str | Path, settings: PlanSettings) -> PlanState:
    """The runs of a recipe file, which of them are done, and how long the others will take on the executor's nodes.

    Refuses what ``run`` would refuse before its first run, without fetching or writing anything: nodes that cannot be
    reached or are unlike, files that a node does not see, stacks that no node has together. The servers of runs that
    are left are asked whether they are there. Damaged attempts of earlier runs, and a GPU that is not used, are events.
    """
    chosen, place, on_event = load_recipe(recipe), settings.place, settings.on_event
    here = place.reachable_site(chosen.device)
    anonymizer = Anonymizer.here(chosen.folder_of(()), here.artifacts.root)
    store = place.store(here)

    def report(message: str) -> None:
        on_event(Waiting(anonymizer.message(message)))

    with closing(open_executor(settings.executor, here, report)) as opened:
        machine = opened.site.machine(chosen.device)
        if machine.gpu_problem:
            on_event(GpuUnused(anonymizer.message(machine.gpu_problem)))
        planned = tuple(
            replace(run, reason=run.unsupported and anonymizer.message(run.unsupported))
            for run in plan_at(chosen, opened.site, settings.allow_leak)
        )
        opened.refuse_unseen([run.spec for run in planned])
        nodes = Schedule.of(planned, opened.nodes(machine.device)).nodes
        resumed = resume_point(planned, store, here.spill_roots, opened.site.artifacts)
        speeds = opened.site.speeds(chosen.device) if resumed.left else None
    for damaged in resumed.damaged:
        on_event(DamageFound(anonymizer.damaged(damaged), None))
    if not settings.offline:
        ask_servers(chosen, resumed.left)
    planned, done = resumed.planned, frozenset(resumed.done)
    if speeds is None:
        return PlanState(planned, done, nodes=nodes)
    basis = forecast_basis(speeds, store, chosen.name, resumed.records)
    expected = basis.forecast(resumed.left, planned, nodes, hourly_price(chosen))
    return PlanState(planned, done, expected, speeds, nodes)
