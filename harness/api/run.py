"""``harness.run``: plans the runs of a recipe and makes those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.core.record import RunRecord
from harness.core.site import MAIN
from harness.errors import HarnessError
from harness.execution.executor import Executor
from harness.execution.local import LocalExecutor, local_site
from harness.execution.sweep import Event, sweep
from harness.planning.plan import PlannedRun, plan
from harness.recipe import Recipe, load_recipe
from harness.stacks import Stacks
from harness.storage.store import Store


def run(
    recipe: Recipe | str | Path,
    results: str | Path = "results",
    cache: str | Path | None = None,
    pythons: Mapping[str, Path] | None = None,
    allow_leak: bool = False,
    paranoid: bool = False,
    *,
    create_stacks: Callable[[str], None] | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> tuple[RunRecord, ...]:
    """Plans and makes the runs of a recipe, as ``qharness run`` does; returns one record per planned run.

    ``pythons`` are interpreters of the caller's own by stack; ``allow_leak`` lets calibration overlap the evaluation.
    With ``paranoid`` the files that a run read are hashed again after each run, not only when all are done.
    ``create_stacks`` receives progress messages; where it is given, stacks that the recipe needs and that are missing
    are made first. ``on_event`` receives what happens during the sweep.

    Raises RecipeError for a wrong recipe; a run that fails is a record among those returned.
    """
    site = local_site(cache, pythons)
    executor = LocalExecutor(site)
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    planned = _fetched_plan(chosen, executor, allow_leak)
    if create_stacks is not None and _create_missing(planned, site.stacks, create_stacks):
        planned = _fetched_plan(chosen, executor, allow_leak)
    return sweep(planned, Store(Path(results)), executor, on_event, paranoid)


def _fetched_plan(recipe: Recipe, executor: Executor, allow_leak: bool) -> tuple[PlannedRun, ...]:
    """The plan, after what it names on a hub was fetched: a model's shapes and dtype are known only then.

    Raises SourceError where something cannot be fetched.
    """
    planned = plan(recipe, executor.site, allow_leak)
    if not executor.fetch([run.spec for run in planned]):
        return planned
    return plan(recipe, executor.site, allow_leak)


def _create_missing(planned: Sequence[PlannedRun], stacks: Stacks, report: Callable[[str], None]) -> bool:
    """Makes the stacks whose absence alone prevents runs. True where there were any."""
    from harness.stacks.build import create

    wanted = {run.spec.stack for run in planned} - {MAIN}
    missing = {stacks.find(name).find_obstacle(): name for name in sorted(wanted)}
    names = [missing[why] for why in dict.fromkeys(run.unsupported for run in planned) if why and why in missing]
    for name in names:
        try:
            create(stacks.find(name), report)
        except HarnessError as error:  # its runs are recorded as unsupported; the others are made
            report(str(error))
    return bool(names)
