"""``qharness stack``: environments of libraries that cannot live beside the rest."""

from __future__ import annotations

import typer

from harness.cli.options import CacheFolder, Pythons, StackName, stacks_of
from harness.errors import ExitCode

stack_app = typer.Typer(
    help="Environments of libraries that cannot live beside the rest.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@stack_app.command("list")
def list_stacks(cache: CacheFolder = None) -> None:
    """List the stacks: what each is for, and whether it is made."""
    from harness.cli.render.plan import show_stacks

    show_stacks(stacks_of(cache))


@stack_app.command("create")
def create_stack(name: StackName, cache: CacheFolder = None) -> None:
    """Make a stack's interpreter from its pinned requirements."""
    from harness.stacks.build import create

    stack = stacks_of(cache).find(name)
    create(stack, typer.echo)
    typer.echo(f"stack {name} is ready: {stack.python}")


@stack_app.command("check")
def check_stack(name: StackName, cache: CacheFolder = None, pythons: Pythons = None) -> None:
    """Say whether a stack holds what it was made with, and whether a worker starts in it."""
    from harness.stacks.build import check

    faults = check(stacks_of(cache, pythons).find(name))
    for fault in faults:
        typer.echo(fault, err=True)
    if faults:
        raise typer.Exit(ExitCode.USAGE)
    typer.echo(f"stack {name} is in order")


@stack_app.command("remove")
def remove_stack(name: StackName, cache: CacheFolder = None) -> None:
    """Delete a stack's folder."""
    from harness.stacks.build import remove

    typer.echo(f"stack {name} removed" if remove(stacks_of(cache).find(name)) else f"stack {name} was not there")
