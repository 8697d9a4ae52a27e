"""``qharness report``: tables and plots of a results folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.collector import never_collected
from harness.cli.options import Redact, Results
from harness.report.terminal import say

SUMMARY = "GITHUB_STEP_SUMMARY"
"""The environment variable with the path of a GitHub workflow step's summary."""


def report(
    results: Results,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Output folder.", show_default="reports"),
    ] = None,
    formats: Annotated[
        str,
        typer.Option("--format", help="Comma-separated: html, md, csv, parquet, png, svg, model-card, github."),
    ] = "html,md,csv",
    redact: Redact = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again whenever a run ends, until the sweep or Ctrl-C ends it.")
    ] = False,
) -> None:
    """Write the report of a results folder: offline HTML, Markdown, CSV, images and more.

    github is a job summary: without --out it is appended to the file in $GITHUB_STEP_SUMMARY.
    """
    from harness.cli.render.damage import say_damaged
    from harness.core.record import Damaged

    if watch:
        from harness.api.watch import write_report_on_change

        write_report_on_change(results, out or Path("reports"), formats.split(","), redact, _say_written, _say_trouble)
        return
    from harness.api.report import write_folder_report

    named = os.environ.get(SUMMARY)
    summary = Path(named) if named and out is None else None
    damaged: list[Damaged] = []
    with never_collected():
        written = write_folder_report(
            results,
            out or Path("reports"),
            formats.split(","),
            summary,
            damaged.append,
            redact,
        )
        say_damaged(damaged, results)
        _say_written(written)


def _say_written(paths: Sequence[Path]) -> None:
    for path in paths:
        say(path)


def _say_trouble(reason: str) -> None:
    say(f"{reason}; tried again until it can be read", error=True)
