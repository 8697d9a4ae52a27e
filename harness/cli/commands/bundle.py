"""``qharness bundle``: results in one file that others can check and repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.cli.options import Results
from harness.report.terminal import say


def bundle(
    results: Results,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NAME.qh.zip", help="The file to write.")],
    sign: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it at run time
        typer.Option("--sign", metavar="KEY", help="Sign it with this SSH key (a public one if an agent has it)."),
    ] = None,
    recipe: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Option("--recipe", metavar="NAME", help="Of the results of several recipes, only those of this one."),
    ] = None,
) -> None:
    """Put the records of a results folder, their evidence and report, and the hashes of everything into one file.

    Equal results give equal bytes.
    """
    from harness.api.bundle import bundle as bundled

    made = bundled(results, out, sign, recipe)
    say(f"{made.path}: {made.attempts} attempts, {made.files} files, {made.bytes / 1e6:.1f} MB")
    say(f"next: qharness verify {made.path}")
