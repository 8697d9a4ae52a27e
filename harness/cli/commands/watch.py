"""``qharness watch``: a sweep as it goes, seen from its results."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Annotated

import typer

from harness.cli.options import Results


def watch(
    results: Results,
    once: Annotated[bool, typer.Option("--once", help="Print what there is now, and end.")] = False,
) -> None:
    """Show how far a sweep is, what failed, and the figures so far, until the sweep or Ctrl-C ends it.

    All of it comes from the results: the sweep may run in another terminal or on another machine. If none runs, it
    waits ten seconds for one that is just being started. Where the output is no terminal, the state is printed once.
    """
    from rich.console import Console
    from rich.live import Live

    from harness.api.watch import LOOK_EVERY_S, ResultsWatch
    from harness.cli.render.watch import frame, frame_text

    watched = ResultsWatch(results)
    if once or not sys.stdout.isatty():
        watched.refuse_absent()
        sys.stdout.write(frame_text(watched.look(), shutil.get_terminal_size().columns))
        return
    console = Console()
    seen = watched.look()
    try:
        with Live(console=console, auto_refresh=False) as live:
            while watched.goes_on(seen):
                live.update(frame(seen, console.width, awaits=True), refresh=True)
                time.sleep(LOOK_EVERY_S)
                seen = watched.look()
            live.update(frame(seen, console.width), refresh=True)
    finally:
        console.show_cursor()  # an interrupt may come while Live hides it, before it would show it again
    watched.refuse_absent()
