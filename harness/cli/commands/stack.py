"""``qharness stack``: environments for libraries that cannot share the main one."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.options import CacheFolder, Device, Pythons, StackDevice, StackName, stacks_of
from harness.errors import ExitCode
from harness.report.terminal import say

stack_app = typer.Typer(
    help="Manage environments for libraries that cannot share the main one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@stack_app.command("list")
def list_stacks(cache: CacheFolder = None, device: StackDevice = Device.AUTO) -> None:
    """List the stacks: what each is for, and whether it is installed."""
    from harness.cli.render.plan import show_stacks

    show_stacks(stacks_of(cache, device=device))


@stack_app.command("create")
def create_stack(name: StackName, cache: CacheFolder = None, device: StackDevice = Device.AUTO) -> None:
    """Create a stack's environment from its pinned requirements."""
    from harness.stacks.build import create

    stack = stacks_of(cache, device=device).find(name)
    create(stack, say)
    say(f"stack {name} is ready: {stack.python}")


@stack_app.command("check")
def check_stack(
    name: StackName, cache: CacheFolder = None, pythons: Pythons = None, device: StackDevice = Device.AUTO
) -> None:
    """Check that a stack is unchanged and that a worker starts in it."""
    from harness.stacks.build import check

    faults = check(stacks_of(cache, pythons, device).find(name))
    for fault in faults:
        say(fault, error=True)
    if faults:
        raise typer.Exit(ExitCode.USAGE)
    say(f"stack {name} is OK")


@stack_app.command("lock")
def lock_stack(name: StackName) -> None:
    """For maintainers: write the hash of every file of the pinned versions into the stack's requirements file."""
    from harness.stacks import stack_definition
    from harness.stacks.lock import lock

    for definition in stack_definition(name).builds:
        lock(definition, say)


@stack_app.command("remove")
def remove_stack(
    name: StackName,
    cache: CacheFolder = None,
    device: StackDevice = Device.AUTO,
    obsolete: Annotated[
        bool, typer.Option("--obsolete", help="Delete only the folders that were made from other pins than today's.")
    ] = False,
) -> None:
    """Delete a stack's folder."""
    from harness.stacks.build import remove, remove_obsolete

    if obsolete:
        removed = remove_obsolete(stacks_of(cache), name)
        say("\n".join(f"removed {folder}" for folder in removed) or f"stack {name} has no folder of other pins")
        return
    existed = remove(stacks_of(cache, device=device).find(name))
    say(f"stack {name} removed" if existed else f"stack {name} does not exist")
