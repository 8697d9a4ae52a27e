"""``qharness pick``: compares published quantizations of a model, of which one at a time is on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from harness.cli import interrupts
from harness.cli.collector import never_collected
from harness.cli.options import (
    CacheFolder,
    EngineName,
    Force,
    MemoryBudget,
    Pythons,
    RecipeOut,
    ResultsFolder,
    below,
    workplace,
)
from harness.errors import ExitCode
from harness.report.terminal import say

if TYPE_CHECKING:
    from harness.execution.events import Event


def pick(
    checkpoints: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time
        typer.Argument(
            metavar="REPO...",
            help="Published quantizations: folders, .gguf files, or hub ids; default: those that the hub knows.",
        ),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--of", metavar="MODEL", help="The unquantized model; default: the one that the checkpoints' cards name."
        ),
    ] = None,
    engine: EngineName = "transformers",
    disk: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Option(
            "--disk",
            metavar="SIZE",
            help="The most that the model, what is kept of it and one checkpoint may take, such as 40GB; default: all.",
        ),
    ] = None,
    budget: MemoryBudget = None,
    out: RecipeOut = None,
    force: Force = False,
    results: ResultsFolder = "results",
    cache: CacheFolder = None,
    pythons: Pythons = None,
) -> None:
    """Compare published quantizations of a model: download, measure, delete one at a time; say how to serve the pick.

    Nothing is deleted from the hub's own cache. The same command resumes. A checkpoint that cannot be measured does not
    stop the others; of those that you named, exit code 3 says so.
    """
    from harness.api.pick import PickRequest, measure_each, measured_earlier, serve_command, write_recipe
    from harness.api.recommend import recommend
    from harness.api.run import RunSettings
    from harness.cli.render.propose import show_picked
    from harness.cli.render.recommend import show
    from harness.cli.render.sweep import display
    from harness.core.record import FAILURES
    from harness.planning.estimate.gpus import budget as parse
    from harness.planning.estimate.gpus import size_bytes
    from harness.report.recommendation import shown

    disk_bytes = None if disk is None else size_bytes(disk, "--disk")
    served_in = None if budget is None else parse(budget, "--budget").size
    request = PickRequest(model, tuple(checkpoints or ()), engine, disk_bytes, served_in)
    place = workplace(results, cache, pythons)
    written = write_recipe(request, place, out, force, say, _tell)
    show_picked(written)
    with interrupts.resumable(), display(False) as on_event:
        made = measure_each(written.path, RunSettings(place, on_event=on_event), say)
    for fault in made.left_out:
        say(f"left out: {fault.label}: {fault.reason}", error=True)
    folder = below(results, _name(written.path))
    with never_collected():
        recommendations = recommend(folder)
        show(list(map(shown, recommendations)))
    variants = [row.evidence.variant for each in recommendations for row in each.table.rows if row.evidence]
    if others := measured_earlier(variants, written.path):
        say(f"compared with what earlier picks of this model measured too: {', '.join(others)}")
    for each in recommendations:
        if each.pick is None:
            continue
        serve = serve_command(each)
        say(
            f"serve it: {serve}"
            if serve
            else "no server is known for the pick: it is no published checkpoint, or one that only transformers reads"
        )
    say(f"next: qharness report {folder}")
    lacking = made.left_out or (written.left_out if checkpoints else ())
    if lacking or any(record.status in FAILURES for record in made.records):
        raise typer.Exit(ExitCode.RUNS_FAILED)


def _tell(event: Event) -> None:
    from harness.cli.render.events import rendered

    for line in rendered(event).lines:
        say(line)


def _name(path: Path) -> str:
    from harness.recipe import load_recipe

    return load_recipe(path).name
