"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from harness.stacks import Stacks


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML).")]
ResultsFolder = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where records are kept.")]
BaselinesFolder = Annotated[Path, typer.Option("--baselines", metavar="DIR", help="Where baselines are kept.")]
CacheFolder = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads it at run time
    typer.Option("--cache", metavar="DIR", help="Where checkpoints and references are kept (or $QHARNESS_CACHE)."),
]
Pythons = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--python", metavar="NAME=PATH", help="An interpreter of your own for a stack; may be repeated."),
]
AllowLeak = Annotated[
    bool, typer.Option("--allow-leak", help="Let calibration overlap the evaluation text; every such row is marked.")
]
StackName = Annotated[str, typer.Argument(metavar="NAME", help="A stack that 'qharness stack list' names.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines, for machines.")]


def interpreters(pythons: list[str] | None) -> dict[str, Path]:
    """The user's own interpreters, by stack. Raises UsageError for what is no NAME=PATH."""
    from harness.stacks import parse_pythons

    return parse_pythons(pythons or [])


def stacks_of(cache: Path | None, pythons: list[str] | None = None) -> Stacks:
    """The stacks below a cache folder, with the interpreters that the user names."""
    from harness.execution.local import local_site

    return local_site(cache, interpreters(pythons)).stacks
