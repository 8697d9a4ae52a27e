"""``qharness merge``: one results folder from several."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.options import AsJson
from harness.errors import ExitCode
from harness.report.terminal import say


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="RESULTS...", help="Results folders, URLs or bundles; they are only read."),
    ],
    into: Annotated[
        str, typer.Option("--into", metavar="DIR|URL", help="The results folder to add them to, or its URL.")
    ],
    figures: Annotated[
        bool, typer.Option("--figures", help="Also lay the figures of the sources side by side, where comparable.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put the results of several machines, sweeps or bundles into one folder; what is there is not added twice.

    Prints what was not simply copied. Exits with 1 if something was left out, or two copies of an attempt differ.
    """
    from harness.api.merge import merge as merged
    from harness.cli.render.verify import show_steps

    actions = show_steps(merged(sources, into), as_json)
    if figures:
        from harness.api.pool import pool
        from harness.cli.render.pool import show_pool

        show_pool(pool(sources), as_json)
    if not as_json:
        say(f"next: qharness report {into}")
    if actions["conflict"] or actions["left out"]:
        raise typer.Exit(ExitCode.GATE_FAILED)
