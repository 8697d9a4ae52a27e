"""``qharness report``: tables and figures of a results folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

SUMMARY = "GITHUB_STEP_SUMMARY"
"""The variable in which a GitHub workflow names the file of a step's summary."""


def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the report is written.", show_default="reports"),
    ] = None,
    formats: Annotated[
        str,
        typer.Option("--format", help="Of html, md, csv, parquet, png, svg, model-card, github, with commas between."),
    ] = "html,md,csv",
) -> None:
    """Write the report of a results folder: HTML that works offline, Markdown, CSV, images and more.

    github is a job summary: without --out it is appended to the file that $GITHUB_STEP_SUMMARY names.
    """
    from harness.api.report import write_folder_report

    named = os.environ.get(SUMMARY)
    summary = Path(named) if named and out is None else None
    for path in write_folder_report(results, out or Path("reports"), formats.split(","), summary):
        typer.echo(path)
