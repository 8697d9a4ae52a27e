"""``qharness plan``: what a recipe would run."""

from __future__ import annotations

from pathlib import Path

from harness.cli.options import AllowLeak, AsJson, CacheFolder, Pythons, RecipeFile, ResultsFolder, stacks_of


def plan(
    recipe: RecipeFile,
    results: ResultsFolder = Path("results"),
    cache: CacheFolder = None,
    pythons: Pythons = None,
    allow_leak: AllowLeak = False,
    as_json: AsJson = False,
) -> None:
    """Show the runs of a recipe in order: what is done, what is left, what cannot be."""
    from harness.cli.render.plan import show_plan
    from harness.execution.sweep import done
    from harness.planning.plan import plan as make_plan
    from harness.recipe import load_recipe
    from harness.storage.cache import Cache, default_folder
    from harness.storage.store import Store

    planned = make_plan(load_recipe(recipe), stacks=stacks_of(cache, pythons), allow_leak=allow_leak)
    records = Store(results).records(planned[0].spec.recipe)
    show_plan(planned, set(done(planned, records, Cache(cache or default_folder()))), as_json)
