"""``qharness plan``: what a recipe would run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import (
    AllowLeak,
    AsJson,
    CacheLocation,
    ClusterAddress,
    ExecutorName,
    NodeCount,
    Pythons,
    RecipeFile,
    ResultsFolder,
    SbatchOptions,
    below,
    workplace,
)

if TYPE_CHECKING:
    from harness.core.record import Damaged
    from harness.execution.events import Event


def plan(
    recipe: RecipeFile,
    results: ResultsFolder = "results",
    cache: CacheLocation = None,
    pythons: Pythons = None,
    allow_leak: AllowLeak = False,
    costs: Annotated[
        bool, typer.Option("--costs", help="Also show what each run leaves on disk and, if there is a price, costs.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask the servers that the recipe names whether they are there.")
    ] = False,
    executor: ExecutorName = "local",
    address: ClusterAddress = None,
    nodes: NodeCount = None,
    slurm: SbatchOptions = None,
    as_json: AsJson = False,
) -> None:
    """Show the runs of a recipe in order (done, to do, unsupported), and what is left: time, disk and money.

    With the executor of a cluster its nodes are asked, and what is wrong with them is told before any run. For Slurm
    the jobs are submitted, waited for and ended.
    """
    from harness.api.plan import PlanSettings, plan_with_state
    from harness.cli.render.damage import say_damaged
    from harness.cli.render.events import rendered
    from harness.cli.render.plan import show_plan
    from harness.execution.events import DamageFound
    from harness.execution.executors import ExecutorChoice
    from harness.report.terminal import say

    damaged: list[Damaged] = []

    def show(event: Event) -> None:
        if isinstance(event, DamageFound):
            damaged.append(event.damaged)
            return
        for line in rendered(event).lines:
            say(line, error=True)

    place, where = workplace(results, cache, pythons), ExecutorChoice(executor, nodes, tuple(slurm or ()), address)
    state = plan_with_state(recipe, PlanSettings(place, allow_leak, offline, where, show))
    if damaged:
        say_damaged(damaged, below(results, state.planned[0].spec.recipe))
    show_plan(state, as_json, costs)
