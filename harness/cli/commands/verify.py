"""``qharness verify``: whether stored results and artifacts are as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.cli.options import AsJson
from harness.errors import ExitCode
from harness.report.terminal import say


def verify(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A results folder, a cache folder, the URL of either, or a bundle.")
    ],
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Of a cache, hash all files too; those of results always are.")
    ] = False,
    signers: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it at run time
        typer.Option("--signers", metavar="FILE", help="Who may have signed a bundle (ssh-keygen's ALLOWED SIGNERS)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that everything in results, a cache or a bundle is as it was written: exit with 1 if something is damaged.

    Of a bundle, also that its report follows from its records; with 4 if that cannot be told of a part of it.
    This finds damage and careless edits, not forgery: whoever changes a record on purpose can also seal it again, and
    only a signature says who made a bundle.
    """
    from harness.api.verify import verify as verified
    from harness.cli.render.verify import show

    states = show(verified(path, read_data, signers), as_json)
    if states["damaged"]:
        if not as_json and not Path(path).is_file():
            say(f"next: qharness repair {path}")
        raise typer.Exit(ExitCode.GATE_FAILED)
    if states["newer"]:
        raise typer.Exit(ExitCode.USAGE)
    if states["not compared"]:
        raise typer.Exit(ExitCode.INCONCLUSIVE)
