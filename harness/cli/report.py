"""``qharness report``: tables and figures of a results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report is written.")] = Path("reports"),
    formats: Annotated[str, typer.Option("--format", help="Of html, md and csv, with commas between.")] = "html,md,csv",
) -> None:
    """Write the report of a results folder: HTML that works offline, Markdown, CSV."""
    from harness.report import write_report
    from harness.store import read_records

    records = read_records(results)
    names = {record.spec.recipe for record in records}
    folder = out / (names.pop() if len(names) == 1 else results.resolve().name)
    for path in write_report(records, folder, formats.split(",")):
        typer.echo(path)
