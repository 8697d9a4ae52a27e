"""``qharness repair``: mends what ``verify`` found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.cli.options import AsJson, CacheFolder
from harness.errors import ExitCode


def repair(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A results folder or a cache folder.")],
    source: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it at run time
        typer.Option("--from", metavar="DIR", help="Another copy of the results, or a baseline, to restore from."),
    ] = None,
    cache: CacheFolder = None,
    seal: Annotated[bool, typer.Option("--seal", help="Add checksums to old records, as they are now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Restore damaged records, or set them aside so that the next run makes them again; clean up. Prints each step.

    Nothing of a results folder is deleted but what interrupted writes left. Exits with 1 if something could not be
    repaired.
    """
    from harness.api.repair import repair as repaired
    from harness.cli.render.verify import show_steps

    actions = show_steps(repaired(path, source, cache, seal), as_json)
    if actions["set aside"] or actions["not repaired"]:
        raise typer.Exit(ExitCode.GATE_FAILED)
