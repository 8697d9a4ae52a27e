"""``qharness replay``: does this machine measure what a bundle says?"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.cli import interrupts
from harness.cli.options import AsJson, CacheLocation, Pythons, interpreters
from harness.report.terminal import say


def replay(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A file written by 'qharness bundle'.")],
    results: Annotated[str, typer.Option("--results", metavar="DIR|URL", help="Where the new records go.")] = "replays",
    sources: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time
        typer.Option("--from", metavar="PATH", help="A model, text or task that the bundle names; may be repeated."),
    ] = None,
    cache: CacheLocation = None,
    pythons: Pythons = None,
    create_stacks: Annotated[
        bool, typer.Option("--create-stacks", help="First create the stacks that the runs need.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Turn every metric into a gate.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run what a bundle measured again, as far as this machine can, and compare: BASE is the bundle.

    Exits with 1 if a gated figure differs or a run fails, with 4 if one could not be evaluated or was not run again.
    """
    from harness.api.replay import replay as replayed
    from harness.cli.render.replay import show
    from harness.cli.render.sweep import display

    progress = partial(say, error=True) if create_stacks else None
    with interrupts.resumable(), display(as_json) as on_event:
        found = replayed(
            bundle,
            results,
            sources or (),
            cache,
            interpreters(pythons),
            strict=strict,
            create_stacks=progress,
            on_event=on_event,
        )
    show(found, as_json)
    raise typer.Exit(found.exit_code)
