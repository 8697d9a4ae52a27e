"""``qharness stack``: environments for libraries that cannot share the main one."""

from __future__ import annotations

import typer

from harness.cli.options import CacheFolder, Pythons, StackName, stacks_of
from harness.errors import ExitCode
from harness.report.terminal import say

stack_app = typer.Typer(
    help="Manage environments for libraries that cannot share the main one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@stack_app.command("list")
def list_stacks(cache: CacheFolder = None) -> None:
    """List the stacks: what each is for, and whether it is installed."""
    from harness.cli.render.plan import show_stacks

    show_stacks(stacks_of(cache))


@stack_app.command("create")
def create_stack(name: StackName, cache: CacheFolder = None) -> None:
    """Create a stack's environment from its pinned requirements."""
    from harness.stacks.build import create

    stack = stacks_of(cache).find(name)
    create(stack, say)
    say(f"stack {name} is ready: {stack.python}")


@stack_app.command("check")
def check_stack(name: StackName, cache: CacheFolder = None, pythons: Pythons = None) -> None:
    """Check that a stack is unchanged and that a worker starts in it."""
    from harness.stacks.build import check

    faults = check(stacks_of(cache, pythons).find(name))
    for fault in faults:
        say(fault, error=True)
    if faults:
        raise typer.Exit(ExitCode.USAGE)
    say(f"stack {name} is OK")


@stack_app.command("remove")
def remove_stack(name: StackName, cache: CacheFolder = None) -> None:
    """Delete a stack's folder."""
    from harness.stacks.build import remove

    say(f"stack {name} removed" if remove(stacks_of(cache).find(name)) else f"stack {name} does not exist")
