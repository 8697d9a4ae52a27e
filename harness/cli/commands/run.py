"""``qharness run``: makes the runs of a recipe."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import AllowLeak, AsJson, CacheFolder, Pythons, RecipeFile, ResultsFolder, stacks_of
from harness.errors import ExitCode, HarnessError

if TYPE_CHECKING:
    from harness.planning.plan import PlannedRun
    from harness.stacks import Stacks


def run(
    recipe: RecipeFile,
    results: ResultsFolder = Path("results"),
    cache: CacheFolder = None,
    pythons: Pythons = None,
    create_stacks: Annotated[bool, typer.Option("--create-stacks", help="First make the stacks it needs.")] = False,
    allow_leak: AllowLeak = False,
    paranoid: Annotated[
        bool, typer.Option("--paranoid", help="Hash models and texts again after each run, not only at the end.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the runs of a recipe. Run it again to resume: what is done is not done twice."""
    from harness.cli.render.sweep import display
    from harness.core.record import FAILURES
    from harness.core.run import baseline_engine
    from harness.execution.sweep import ready_plan
    from harness.execution.sweep import run as make_runs
    from harness.recipe import load_recipe
    from harness.storage.cache import Cache, default_folder
    from harness.storage.store import Store

    chosen, stacks = load_recipe(recipe), stacks_of(cache, pythons)
    planned = ready_plan(chosen, stacks, allow_leak)
    if create_stacks and _create_missing(planned, stacks):
        planned = ready_plan(chosen, stacks, allow_leak)
    for ending in (signal.SIGTERM, signal.SIGHUP):  # or a worker would outlive its sweep
        if signal.getsignal(ending) is not signal.SIG_IGN:  # under nohup a closed terminal ends nothing
            signal.signal(ending, signal.default_int_handler)
    try:
        with display(as_json) as show:
            records = make_runs(planned, Store(results), Cache(cache or default_folder()), show, stacks, paranoid)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command resumes where it stopped", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    failed = sum(record.status in FAILURES for record in records)
    base = baseline_engine(record.spec for record in records)
    baseless = any(r.spec.is_baseline and r.spec.engine == base and r.status != "ok" for r in records)
    folder = results / planned[0].spec.recipe
    if not as_json:
        well = sum(record.status == "ok" for record in records)
        rest = len(records) - well - failed
        typer.echo(f"{well} ok, {failed} failed, {rest} unsupported; records in {folder}")
        typer.echo(f"next: qharness report {folder}")
    if baseless and not failed:
        typer.echo("a run of the baseline could not be made; there is nothing to compare with", err=True)
    if failed or baseless:
        raise typer.Exit(ExitCode.RUNS_FAILED)


def _create_missing(planned: Sequence[PlannedRun], stacks: Stacks) -> bool:
    """Makes the stacks whose absence alone keeps runs from being made. True where there were any."""
    from harness.stacks import MAIN
    from harness.stacks.build import create

    wanted = {run.spec.stack for run in planned} - {MAIN}
    missing = {stacks[name].absence: name for name in sorted(wanted)}
    names = [missing[why] for why in dict.fromkeys(run.unsupported for run in planned) if why and why in missing]
    for name in names:
        try:
            create(stacks[name], typer.echo)
        except HarnessError as error:  # its runs are recorded as unsupported; the others are made
            typer.echo(str(error), err=True)
    return bool(names)
