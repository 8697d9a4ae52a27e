"""``qharness compare``: did anything get worse?"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.cli.collector import never_collected
from harness.cli.options import BaselinesFolder, Redact, ResultsFolder
from harness.errors import UsageError
from harness.report.terminal import say


class CompareFormat(StrEnum):
    """Output formats of a comparison."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    JSON = "json"
    JUNIT = "junit"


Side = "A results folder, FOLDER@ID with the id of a session or run, or the name of a baseline."


def compare(
    base: Annotated[str, typer.Argument(metavar="BASE", help=f"The known good state. {Side}")],
    head: Annotated[str, typer.Argument(metavar="HEAD", help="The state to judge; written in the same way.")],
    gate: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time
        typer.Option(
            "--gate",
            metavar="NAME=THRESHOLD",
            help="Such as perplexity=0.5%; overrides the recipe's gate; may be repeated.",
        ),
    ] = None,
    gates: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--gates", metavar="RECIPE", help="Use this recipe's gates instead of those of HEAD's recipe."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Turn every metric into a gate.")] = False,
    form: Annotated[CompareFormat, typer.Option("--format", help="Output format.")] = CompareFormat.TERMINAL,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="FILE", help="Write the comparison to a file and print only the verdict."),
    ] = None,
    whole: Annotated[bool, typer.Option("--all", help="Also list what did not change (terminal format).")] = False,
    results: ResultsFolder = "results",
    baselines: BaselinesFolder = Path("baselines"),
    redact: Redact = False,
) -> None:
    """Check whether HEAD is worse than BASE. Exits with 1 if a gate failed, with 4 if one could not be evaluated."""
    from harness.api.compare import compare as compared
    from harness.report.comparison import render
    from harness.report.comparison.words import verdict_line
    from harness.report.write import write_file

    with never_collected():
        own = _own(gate or [])
        comparison = compared(
            base, head, own, gates, strict=strict, results=results, baselines=baselines, redact=redact
        )
        if out is not None:
            write_file(out, render(comparison, form).encode())
            say(f"{verdict_line(comparison)}; written to {out}")
        elif form is CompareFormat.TERMINAL:
            from harness.report.comparison.terminal import show

            show(comparison, whole)
        else:
            sys.stdout.write(render(comparison, form))
        raise typer.Exit(comparison.exit_code)


def _own(written: list[str]) -> dict[str, str | float]:
    """Gates given with --gate. Raises UsageError for one without a threshold."""
    pairs = [each.partition("=") for each in written]
    for each, (name, equals, value) in zip(written, pairs, strict=True):
        if not (name and equals and value):
            raise UsageError(f"--gate {each}: expected NAME=THRESHOLD, such as perplexity=0.5%")
    return {name.strip(): value for name, _, value in pairs}
