"""``qharness compare``: did anything get worse."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.cli.options import BaselinesFolder, ResultsFolder
from harness.errors import UsageError


class Format(StrEnum):
    """How a comparison is written."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    JSON = "json"
    JUNIT = "junit"


Side = "A results folder, FOLDER@ID with the id of a session or run in it, or the name of a baseline."


def compare(
    base: Annotated[str, typer.Argument(metavar="BASE", help=f"What was good. {Side}")],
    head: Annotated[str, typer.Argument(metavar="HEAD", help="What is to be judged; named in the same way.")],
    gate: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time
        typer.Option(
            "--gate",
            metavar="NAME=THRESHOLD",
            help="Such as perplexity=0.5%, over those of the recipe; may be repeated.",
        ),
    ] = None,
    gates: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--gates", metavar="RECIPE", help="A recipe whose gates hold, in place of those of HEAD's."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Make a gate of every metric.")] = False,
    form: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.TERMINAL,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="FILE", help="Write it there, and the verdict alone to the terminal."),
    ] = None,
    whole: Annotated[bool, typer.Option("--all", help="List on the terminal what did not change, too.")] = False,
    results: ResultsFolder = Path("results"),
    baselines: BaselinesFolder = Path("baselines"),
) -> None:
    """Say whether HEAD is worse than BASE. Ends in 1 where a gate failed, in 4 where one could not be evaluated."""
    from harness.api.compare import compare as compared
    from harness.report.comparison import render
    from harness.report.comparison.words import verdict_line
    from harness.report.write import write_whole

    own = _own(gate or [])
    found = compared(base, head, own, gates, strict=strict, results=results, baselines=baselines)
    if out is not None:
        write_whole(out, render(found, form).encode())
        typer.echo(f"{verdict_line(found)}; written to {out}")
    elif form is Format.TERMINAL:
        from harness.report.comparison.terminal import show

        show(found, whole)
    else:
        sys.stdout.write(render(found, form))
    raise typer.Exit(found.exit_code)


def _own(written: list[str]) -> dict[str, str | float]:
    """Gates given one by one. Raises UsageError for one without a threshold."""
    pairs = [each.partition("=") for each in written]
    for each, (name, equals, value) in zip(written, pairs, strict=True):
        if not (name and equals and value):
            raise UsageError(f"--gate {each}: expected NAME=THRESHOLD, such as perplexity=0.5%")
    return {name.strip(): value for name, _, value in pairs}
