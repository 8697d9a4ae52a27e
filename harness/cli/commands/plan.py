"""``qharness plan``: what a recipe would run."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.options import (
    AllowLeak,
    AsJson,
    CacheLocation,
    Pythons,
    RecipeFile,
    ResultsFolder,
    below,
    workplace,
)


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
    as_json: AsJson = False,
) -> None:
    """Show the runs of a recipe in order (done, to do, unsupported), and what is left: time, disk and money."""
    from harness.api.plan import plan_with_state
    from harness.cli.render.damage import say_damaged
    from harness.cli.render.plan import show_plan
    from harness.core.record import Damaged
    from harness.report.terminal import say

    damaged: list[Damaged] = []
    state = plan_with_state(
        recipe,
        workplace(results, cache, pythons),
        allow_leak,
        damaged.append,
        lambda problem: say(f"the GPU is not used: {problem}", error=True),
        offline,
    )
    if damaged:
        say_damaged(damaged, below(results, state.planned[0].spec.recipe))
    show_plan(state, as_json, costs)
