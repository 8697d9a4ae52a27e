"""``qharness site``: a static site of many sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Redact
from harness.errors import ExitCode, HarnessError
from harness.report.terminal import say


def site(
    results: Annotated[
        list[str], typer.Argument(metavar="RESULTS...", help="Results folders, bundles or URLs; they are only read.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder of the site.")],
    title: Annotated[str, typer.Option("--title", help="What the site is called.")] = "Quantization results",
    bundles: Annotated[
        bool, typer.Option("--bundles", help="Offer a bundle of each sweep to download: records, evidence, report.")
    ] = False,
    redact: Redact = False,
) -> None:
    """Write a static site of many sweeps: search, models over time, two rows side by side. It needs no server.

    Run it again to bring the site up to date: only sweeps that changed are built. Exits with 1 if some of RESULTS
    could not be read.
    """
    from harness.api.site import write_site
    from harness.host.machine import cores

    skipped: list[str | Path] = []

    def on_skipped(location: str | Path, error: HarnessError) -> None:
        skipped.append(location)
        say(f"left out: {error}", error=True)

    made = write_site(results, out, title, bundles, on_skipped, redact, processes=cores())
    say(
        f"{len(made.sweeps)} sweeps, {made.built} built; {len(made.written)} files written, {len(made.removed)} removed"
    )
    for name in made.unbundled:
        say(f"no bundle of {name}: it has damaged attempts, which its page lists; 'qharness repair' may restore them")
    say(made.index)
    if skipped:
        raise typer.Exit(ExitCode.GATE_FAILED)
