"""``qharness history``: figures over time."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.cli.collector import never_collected
from harness.cli.options import BaselinesFolder, Redact, ResultsFolder
from harness.report.terminal import say

Words = Optional[list[str]]  # noqa: UP045 - typer reads it at run time


class HistoryFormat(StrEnum):
    """Output formats of a history."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    JSON = "json"
    CSV = "csv"


def history(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULTS…",
            help="Results folders, FOLDER@ID with the id of a session or run, or names of baselines.",
        ),
    ],
    metric: Annotated[
        Words, typer.Option("--metric", metavar="NAME", help="Such as perplexity or decode; may be repeated.")
    ] = None,
    method: Annotated[
        Words, typer.Option("--method", metavar="WORD", help="Only methods whose name contains this; may be repeated.")
    ] = None,
    model: Annotated[
        Words, typer.Option("--model", metavar="WORD", help="Only models whose name contains this; may be repeated.")
    ] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what changed by more than its threshold.")] = False,
    form: Annotated[HistoryFormat, typer.Option("--format", help="Output format.")] = HistoryFormat.TERMINAL,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="FILE", help="Write the history to a file."),
    ] = None,
    results: ResultsFolder = "results",
    baselines: BaselinesFolder = Path("baselines"),
    redact: Redact = False,
) -> None:
    """Show each metric over time: when it changed, and what else changed at that point."""
    from harness.api.history import history as traced
    from harness.report.history import only_changed, render
    from harness.report.write import write_file

    with never_collected():
        found = traced(
            *places,
            metrics=metric or (),
            methods=method or (),
            models=model or (),
            results=results,
            baselines=baselines,
            redact=redact,
        )
        found = only_changed(found) if changed else found
        if out is not None:
            write_file(out, render(found, form).encode())
            say(f"written to {out}")
        elif form is HistoryFormat.TERMINAL:
            from harness.report.history.terminal import show

            show(found)
        else:
            sys.stdout.write(render(found, form))
