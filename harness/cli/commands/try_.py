"""``qharness try``: compares quantizations of a model without a recipe, and writes the recipe that it used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.cli.collector import never_collected
from harness.cli.commands.run import run
from harness.cli.options import (
    CacheFolder,
    EngineName,
    For,
    Force,
    MemoryBudget,
    Methods,
    Minutes,
    ModelName,
    Purpose,
    Pythons,
    RecipeOut,
    ResultsFolder,
    Revision,
    TextName,
    below,
    split_methods,
    workplace,
)
from harness.errors import ExitCode
from harness.report.terminal import say


def try_(
    model: ModelName,
    methods: Methods = None,
    budget: MemoryBudget = None,
    minutes: Minutes = 30.0,
    purpose: For = Purpose.SIZE,
    engine: EngineName = "transformers",
    text: TextName = "demo",
    revision: Revision = None,
    out: RecipeOut = None,
    force: Force = False,
    plan_only: Annotated[bool, typer.Option("--dry-run", help="Write the recipe and stop.")] = False,
    results: ResultsFolder = "results",
    reports: Annotated[Path, typer.Option("--reports", metavar="DIR", help="Folder of the report.")] = Path("reports"),
    cache: CacheFolder = None,
    pythons: Pythons = None,
) -> None:
    """Compare quantizations of a model in the time that you have, without a recipe: run, report, recommend.

    Picks methods that this machine can run, writes the recipe, and says what it left out. The same command resumes.
    """
    from harness.api.propose import TryRequest, propose
    from harness.cli.render.propose import show_proposed

    request = TryRequest(model, split_methods(methods), budget, minutes, purpose.value, engine, text, revision)
    proposed = propose(request, workplace(results, cache, pythons), out, "try", force, say)
    show_proposed(proposed)
    if plan_only:
        say(f"next: qharness run {proposed.path}")
        return
    ended = _run(proposed.path, results, cache, pythons)
    if ended == ExitCode.INTERRUPTED:
        raise typer.Exit(ended)
    _conclude(below(results, proposed.name), reports, request.objective)
    say(f"the recipe is {proposed.path}: change it, then 'qharness run {proposed.path}' measures what is new")
    if ended:
        raise typer.Exit(ended)


def _run(recipe: Path, results: str, cache: Optional[Path], pythons: Optional[list[str]]) -> int:  # noqa: UP045
    try:
        run(recipe, results, None if cache is None else str(cache), pythons)
    except typer.Exit as ended:
        return ended.exit_code
    return ExitCode.OK


def _conclude(folder: str, reports: Path, objective: Mapping[str, str]) -> None:
    """The report, and which variant to ship."""
    from harness.api.recommend import recommend
    from harness.api.report import write_folder_report
    from harness.cli.render.recommend import show
    from harness.report.recommendation import shown

    with never_collected():
        written = write_folder_report(folder, reports)
        found = recommend(folder, minimize=objective.get("minimize"), maximize=objective.get("maximize"))
        show(list(map(shown, found)))
    for path in written:
        say(path)
