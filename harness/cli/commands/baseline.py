"""``qharness baseline``: records kept under a name, for ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.cli.options import BaselinesFolder

baseline_app = typer.Typer(
    help="Records kept under a name, to compare with later.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The baseline's name.")]


@baseline_app.command("set")
def set_baseline(
    name: Name,
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder.")],
    session: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Option("--session", metavar="ID", help="Only what this session or run measured; its beginning will do."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Set a name anew that is taken.")] = False,
    baselines: BaselinesFolder = Path("baselines"),
) -> None:
    """Copy the records of a results folder that count to a baseline's folder, which can be committed."""
    from harness.api.baselines import Baselines
    from harness.api.results import read_folder

    found = read_folder(results, session)
    for fault in found.unread:
        typer.echo(f"left out: {fault}", err=True)
    typer.echo(Baselines(baselines).set(name, found.records, replace))


@baseline_app.command("list")
def list_baselines(baselines: BaselinesFolder = Path("baselines")) -> None:
    """List the baselines: when each was measured, and of what."""
    from harness.api.baselines import Baselines

    kept = Baselines(baselines)
    names = kept.names()
    if not names:
        typer.echo(f"no baselines in {baselines}; 'qharness baseline set NAME RESULTS' makes one")
    for name in names:
        found = kept.read(name)
        newest = max(record.started_at for record in found.records)
        methods = ", ".join(dict.fromkeys(record.spec.method.label for record in found.records))
        models = ", ".join(dict.fromkeys(record.spec.model.label for record in found.records))
        typer.echo(f"{name}  {newest[:19]}  {len(found.records)} runs of {models}: {methods}")


@baseline_app.command("remove")
def remove_baseline(name: Name, baselines: BaselinesFolder = Path("baselines")) -> None:
    """Delete a baseline's folder."""
    from harness.api.baselines import Baselines

    typer.echo(f"removed {Baselines(baselines).remove(name)}")
