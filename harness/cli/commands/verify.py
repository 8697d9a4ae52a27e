"""``qharness verify``: whether stored results and artifacts are as they were written."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.options import AsJson
from harness.errors import ExitCode
from harness.report.terminal import say


def verify(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A results folder or a cache folder, or the URL of results.")
    ],
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Of a cache, hash all files too; those of results always are.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that everything in a results folder or a cache is as it was written: exit with 1 if something is damaged.

    This finds damage and careless edits, not forgery: whoever changes a record on purpose can also seal it again.
    """
    from harness.api.verify import verify as verified
    from harness.cli.render.verify import show

    states = show(verified(path, read_data), as_json)
    if states["damaged"]:
        if not as_json:
            say(f"next: qharness repair {path}")
        raise typer.Exit(ExitCode.GATE_FAILED)
    if states["newer"]:
        raise typer.Exit(ExitCode.USAGE)
