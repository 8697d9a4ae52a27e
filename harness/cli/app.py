"""The command line. Each command reads its input, calls the API, and prints the result.

Nothing heavy is imported at module level: ``--help`` must be quick.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from harness.cli.commands import (
    baseline,
    bundle,
    compare,
    estimate,
    export,
    formats,
    history,
    init,
    listing,
    merge,
    pick,
    plan,
    recommend,
    repair,
    replay,
    report,
    run,
    selfcheck,
    site,
    stack,
    store,
    try_,
    verify,
    watch,
)
from harness.core.foreign import quoted
from harness.errors import ExitCode, HarnessError, reason_of
from harness.report.terminal import say

UNUSABLE_PATHS = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES})
"""Errors of the operating system whose cause is always a path that the user named."""

app = typer.Typer(
    help="Compare LLM quantization methods: quality, speed and memory against the unquantized baseline.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    plan.plan,
    run.run,
    watch.watch,
    report.report,
    compare.compare,
    history.history,
    estimate.estimate,
    verify.verify,
    repair.repair,
    merge.merge,
    site.site,
    bundle.bundle,
    replay.replay,
    selfcheck.selfcheck,
):
    app.command()(command)
app.command("try")(try_.try_)
app.command()(init.init)
app.command()(pick.pick)
app.command(cls=recommend.RecommendCommand)(recommend.recommend)
app.command("list")(listing.list_plugins)
app.command()(formats.formats)
app.command()(listing.recipes)
app.command()(listing.doctor)
app.command()(listing.schema)
app.add_typer(baseline.baseline_app, name="baseline")
app.add_typer(export.export_app, name="export")
app.add_typer(stack.stack_app, name="stack")
app.add_typer(store.store_app, name="store")


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if show:
        from importlib.metadata import version as installed

        typer.echo(f"qharness {installed('qharness')}")
        raise typer.Exit


def main() -> None:
    """The ``qharness`` command: one clear message and the documented exit code for every error."""
    try:
        app()
    except HarnessError as error:
        say(f"qharness: {_anonymous(str(error))}", error=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if not _has_working_folder():
            say("qharness: the working folder was deleted; change to one that exists", error=True)
            sys.exit(ExitCode.USAGE)
        if _is_of_store(error):
            say(f"qharness: {_anonymous(reason_of(error))}", error=True)
            sys.exit(ExitCode.USAGE)
        if error.errno not in UNUSABLE_PATHS:
            _internal()
        say(f"qharness: {_anonymous(quoted(str(error.filename)))}: {reason_of(error)}", error=True)
        sys.exit(ExitCode.USAGE)
    except Exception:  # noqa: BLE001 - the last handler says how to report the error
        _internal()


def _is_of_store(error: OSError) -> bool:
    """Whether it is of a store at a URL, which cannot be reached or refuses: such an error begins with the URL."""
    from harness.storage.objects import is_url

    return is_url(reason_of(error))


def _has_working_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - only whether there is one
    except FileNotFoundError:
        return False
    return True


def _internal() -> NoReturn:
    """Prints the exception that is being handled, and exits."""
    say(_anonymous(traceback.format_exc()).rstrip("\n"), error=True)
    typer.echo("qharness: internal error; please report the lines above", err=True)
    sys.exit(ExitCode.INTERNAL)


def _anonymous(text: str) -> str:
    """The text without what identifies the user, since errors are pasted into reports and stay in logs of CI."""
    from harness.storage.anonymizer import Anonymizer

    return Anonymizer.for_terminals().message(text)
