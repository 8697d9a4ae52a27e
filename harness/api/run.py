"""``harness.run``: plans the runs of a recipe and executes those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.api.forecasting import forecast_basis
from harness.api.workplace import USUAL_PLACE, Workplace
from harness.core.record import RunRecord
from harness.core.site import Artifacts
from harness.errors import HarnessError
from harness.execution.debris import clear
from harness.execution.events import Cleared, Event, GpuUnused, Waiting
from harness.execution.executors import THIS_MACHINE, ExecutorChoice, OpenExecutor, open_executor
from harness.execution.progress import ProgressNote
from harness.execution.resume import resume_point
from harness.execution.sweep import sweep
from harness.planning.forecast.forecast import SweepForecast
from harness.planning.plan import PlannedRun, hourly_price, plan
from harness.planning.servers import ask_servers, endpoints
from harness.planning.support import StackNotReady
from harness.recipe import Recipe, load_recipe
from harness.stacks import Stacks
from harness.storage.anonymizer import Anonymizer
from harness.storage.objects import is_url, local_path
from harness.storage.store import Store


@dataclass(frozen=True)
class RunSettings:
    """How recipes are run; the parameters of ``run`` say what each means."""

    place: Workplace = USUAL_PLACE
    allow_leak: bool = False
    paranoid: bool = False
    executor: ExecutorChoice = THIS_MACHINE
    create_stacks: Callable[[str], None] | None = None
    on_event: Callable[[Event], None] = lambda event: None


def run(
    recipe: Recipe | str | Path,
    results: str | Path = "results",
    cache: str | Path | None = None,
    pythons: Mapping[str, Path] | None = None,
    allow_leak: bool = False,
    paranoid: bool = False,
    *,
    executor: ExecutorChoice = THIS_MACHINE,
    create_stacks: Callable[[str], None] | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> tuple[RunRecord, ...]:
    """Plans and executes the runs of a recipe, like ``qharness run``; returns one record per planned run.

    ``pythons`` are the caller's own interpreters, by stack. ``allow_leak`` lets calibration overlap the evaluation.
    ``executor`` says where the runs execute: by default on this machine.
    What interrupted sweeps left (processes, temporary and unfinished files) is removed first.
    ``results`` may be a URL such as ``s3://bucket/results``, and so may ``cache``: then artifacts are kept in the
    user's cache folder, and shared at the URL.
    With ``paranoid`` the files that a run read are hashed again after each run, not only at the end.
    If ``create_stacks`` is given, missing stacks that the recipe needs are created first; it receives progress
    messages. ``on_event`` receives the events of the sweep.

    Raises RecipeError for a wrong recipe, and StorageError if a record cannot be written to ``results``: the message
    says where it was kept, and the next call takes it in. A failed run is one of the returned records.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    place = Workplace(results, cache, pythons)
    return run_part(chosen, RunSettings(place, allow_leak, paranoid, executor, create_stacks, on_event))


def run_part(
    chosen: Recipe,
    settings: RunSettings,
    part: Callable[[Sequence[PlannedRun]], Sequence[PlannedRun]] = lambda planned: planned,
) -> tuple[RunRecord, ...]:
    """As ``run``, but only the ``part`` of the plan that the caller chooses; nothing happens if it chooses none.

    It chooses anew whenever it is planned anew: what a model needs may be known only once it is fetched.
    """
    place, on_event = settings.place, settings.on_event
    site = place.reachable_site(chosen.device)
    debris = clear([site.artifacts.root, *([] if is_url(place.results) else [local_path(place.results)])])
    if debris:
        on_event(Cleared(debris))
    anonymizer = Anonymizer.here(chosen.folder_of(()), site.artifacts.root)
    store = place.store(site, anonymizer)
    if store.remote is not None:
        with store.locked(chosen.name):  # a bucket that takes nothing is known before nodes are waited for
            pass

    note = ProgressNote(store, chosen.name)
    on_event = note.following(on_event)

    def report(message: str) -> None:
        on_event(Waiting(anonymizer.message(message)))

    with note, closing(open_executor(settings.executor, site, report)) as opened:
        if problem := opened.site.machine(chosen.device).gpu_problem:
            on_event(GpuUnused(anonymizer.message(problem)))
        ask = partial(_ask_servers, chosen, store, site.spill_roots, opened.site.artifacts)
        planned = tuple(part(_planned(chosen, settings, opened, lambda planned: ask(part(planned)))))
        note.plan([each.spec for each in planned], opened.device_of)
        if not planned:
            return ()

        def expect(todo: Sequence[PlannedRun], records: Sequence[RunRecord]) -> SweepForecast:
            basis = forecast_basis(opened.site.speeds(chosen.device), store, chosen.name, records)
            return basis.forecast(todo, planned, opened.nodes(chosen.device), hourly_price(chosen))

        return sweep(planned, store, opened, on_event, settings.paranoid, site.spill_roots, expect)


def _ask_servers(
    recipe: Recipe, store: Store, spill_roots: Sequence[Path], artifacts: Artifacts, planned: Sequence[PlannedRun]
) -> None:
    """Asks the servers of the runs that are left: a recipe of which every run is done needs none of them."""
    if endpoints(planned):
        ask_servers(recipe, resume_point(planned, store, spill_roots, artifacts).left)


def _planned(
    recipe: Recipe,
    settings: RunSettings,
    executor: OpenExecutor,
    ask: Callable[[Sequence[PlannedRun]], None],
) -> tuple[PlannedRun, ...]:
    """The plan, after asking the nodes and servers, fetching what it names on a hub, and creating its stacks."""
    replan = partial(plan, recipe, executor.site, settings.allow_leak)
    planned = replan()
    executor.refuse_unseen([run.spec for run in planned])
    ask(planned)
    planned = _fetched(planned, executor, replan)
    tried: set[str] = set()
    while settings.create_stacks is not None and (missing := _missing_stacks(planned, executor.stacks) - tried):
        _create(missing, executor.stacks, settings.create_stacks)
        tried |= missing
        planned = _fetched(replan(), executor, replan)  # which may name another that a run needs
    return planned


def _fetched(
    planned: tuple[PlannedRun, ...], executor: OpenExecutor, replan: Callable[[], tuple[PlannedRun, ...]]
) -> tuple[PlannedRun, ...]:
    """The plan after fetching what it names on a hub, because a model's shapes and dtype are known only then.

    Raises SourceError if something cannot be fetched, and UsageError if a node does not see what was fetched.
    """
    if executor.fetch([run.spec for run in planned]):
        planned = replan()
        executor.refuse_unseen([run.spec for run in planned])  # the nodes may not share the hub's cache
        executor.fetch([run.spec for run in planned])  # what else a model needs is known once it is here
    return planned


def _missing_stacks(planned: Sequence[PlannedRun], stacks: Stacks) -> set[str]:
    """The stacks for whose absence runs are unsupported."""
    named = {run.reason.stack for run in planned if isinstance(run.reason, StackNotReady)}
    return {name for name in named if stacks.find(name).find_obstacle() is not None}


def _create(names: set[str], stacks: Stacks, report: Callable[[str], None]) -> None:
    """Creates stacks. The runs of one that cannot be created are recorded as unsupported; the others execute."""
    from harness.stacks.build import create

    for name in sorted(names):
        try:
            create(stacks.find(name), report)
        except HarnessError as error:
            report(str(error))
