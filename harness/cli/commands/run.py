"""``qharness run``: executes the runs of a recipe."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from harness.cli import interrupts
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
    interpreters,
)
from harness.errors import ExitCode
from harness.report.terminal import say


def run(
    recipe: RecipeFile,
    results: ResultsFolder = "results",
    cache: CacheLocation = None,
    pythons: Pythons = None,
    create_stacks: Annotated[
        bool, typer.Option("--create-stacks", help="First create the stacks that the recipe needs.")
    ] = False,
    allow_leak: AllowLeak = False,
    paranoid: Annotated[
        bool, typer.Option("--paranoid", help="Hash models and texts after each run, not only at the end.")
    ] = False,
    executor: ExecutorName = "local",
    address: ClusterAddress = None,
    nodes: NodeCount = None,
    slurm: SbatchOptions = None,
    as_json: AsJson = False,
) -> None:
    """Execute the runs of a recipe. Run it again to resume: finished runs are not repeated."""
    from harness.api.run import run as make_runs
    from harness.cli.render.sweep import display
    from harness.core.record import FAILURES
    from harness.core.run import baseline_engine
    from harness.execution.executors import ExecutorChoice

    progress = partial(say, error=True) if create_stacks else None
    with interrupts.resumable(), display(as_json) as show:
        records = make_runs(
            recipe,
            results,
            cache,
            interpreters(pythons),
            allow_leak,
            paranoid,
            executor=ExecutorChoice(executor, nodes, tuple(slurm or ()), address),
            create_stacks=progress,
            on_event=show,
        )
    failed = sum(record.status in FAILURES for record in records)
    base = baseline_engine(record.spec for record in records)
    baseless = any(r.spec.is_baseline and r.spec.engine_label == base and r.status != "ok" for r in records)
    folder = below(results, records[0].spec.recipe)
    if not as_json:
        well = sum(record.status == "ok" for record in records)
        rest = len(records) - well - failed
        say(f"{well} ok, {failed} failed, {rest} unsupported; records in {folder}")
        say(f"next: qharness report {folder}")
    if baseless and not failed:
        say("a baseline run could not be executed, so there is nothing to compare with", error=True)
    if failed or baseless:
        raise typer.Exit(ExitCode.RUNS_FAILED)
