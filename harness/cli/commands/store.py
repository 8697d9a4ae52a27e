"""``qharness store``: how the records of a results folder are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from harness.cli.options import Results
from harness.errors import ExitCode
from harness.report.terminal import say

if TYPE_CHECKING:
    from harness.api.pack import PackStep

store_app = typer.Typer(
    help="Keep the records of a results folder in one file per recipe, or in folders.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@store_app.command("pack")
def pack_store(results: Results) -> None:
    """Move every whole attempt into one file per recipe, records.tar, which all commands read. Nothing is lost.

    Exits with 1 if something was left where it is.
    """
    from harness.api.pack import pack

    _show(pack(results), "packed")


@store_app.command("unpack")
def unpack_store(results: Results) -> None:
    """Give every packed attempt its folder back, byte for byte.

    Exits with 1 if something was left where it is.
    """
    from harness.api.pack import unpack

    _show(unpack(results), "unpacked")


def _show(steps: Iterator[PackStep], what: str) -> None:
    is_whole = True
    for step in steps:
        say(f"{step.recipe}: {step.moved} attempts {what}")
        for path, reason in step.left.items():
            is_whole = False
            say(f"  left: {path}: {reason}")
    if not is_whole:
        raise typer.Exit(ExitCode.GATE_FAILED)
