"""The command line. Each command reads its input, asks one room to work, and prints what came of it.

Nothing heavy is imported up here: ``--help`` must be quick.
"""

from __future__ import annotations

import signal
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from harness.errors import ExitCode, HarnessError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.planner import PlannedRun
    from harness.stacks import Stacks

stack_app = typer.Typer(
    help="Environments of libraries that cannot live beside the rest.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app = typer.Typer(
    help="Compares quantization methods of language models: quality, speed and memory beside the unquantized baseline.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.add_typer(stack_app, name="stack")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML).")]
ResultsFolder = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where records are kept.")]
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


class Listing(StrEnum):
    """What ``list`` can list."""

    METHODS = "methods"
    ENGINES = "engines"
    METRICS = "metrics"
    TEXTS = "texts"


@app.command()
def plan(
    recipe: RecipeFile,
    results: ResultsFolder = Path("results"),
    cache: CacheFolder = None,
    pythons: Pythons = None,
    allow_leak: AllowLeak = False,
    as_json: AsJson = False,
) -> None:
    """Show the runs of a recipe in order: what is done, what is left, what cannot be."""
    from harness.cache import Cache, default_folder
    from harness.console import show_plan
    from harness.execution.runner import done
    from harness.planner import plan as make_plan
    from harness.recipe import load_recipe
    from harness.store import Store

    planned = make_plan(load_recipe(recipe), stacks=_stacks(cache, pythons), allow_leak=allow_leak)
    records = Store(results).records(planned[0].spec.recipe)
    show_plan(planned, set(done(planned, records, Cache(cache or default_folder()))), as_json)


@app.command()
def run(
    recipe: RecipeFile,
    results: ResultsFolder = Path("results"),
    cache: CacheFolder = None,
    pythons: Pythons = None,
    create_stacks: Annotated[bool, typer.Option("--create-stacks", help="First make the stacks it needs.")] = False,
    allow_leak: AllowLeak = False,
    as_json: AsJson = False,
) -> None:
    """Make the runs of a recipe. Run it again to resume: what is done is not done twice."""
    from harness.cache import Cache, default_folder
    from harness.display import display
    from harness.execution.runner import ready_plan
    from harness.execution.runner import run as make_runs
    from harness.recipe import load_recipe
    from harness.record import FAILURES
    from harness.store import Store

    chosen, stacks = load_recipe(recipe), _stacks(cache, pythons)
    planned = ready_plan(chosen, stacks, allow_leak)
    if create_stacks and _create_missing(planned, stacks):
        planned = ready_plan(chosen, stacks, allow_leak)
    for ending in (signal.SIGTERM, signal.SIGHUP):  # or a worker would outlive its sweep
        if signal.getsignal(ending) is not signal.SIG_IGN:  # under nohup a closed terminal ends nothing
            signal.signal(ending, signal.default_int_handler)
    try:
        with display(as_json) as show:
            records = make_runs(planned, Store(results), Cache(cache or default_folder()), show, stacks)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command resumes where it stopped", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    failed = sum(record.status in FAILURES for record in records)
    baseless = any(record.spec.is_baseline and record.status != "ok" for record in records)
    folder = results / planned[0].spec.recipe
    if not as_json:
        well = sum(record.status == "ok" for record in records)
        rest = len(records) - well - failed
        typer.echo(f"{well} ok, {failed} failed, {rest} unsupported; records in {folder}")
        typer.echo(f"next: qharness report {folder}")
    if baseless and not failed:
        typer.echo("a run of the baseline could not be made; there is nothing to compare with", err=True)
    if failed or baseless:
        raise typer.Exit(ExitCode.RUNS_FAILED)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report is written.")] = Path("reports"),
    formats: Annotated[str, typer.Option("--format", help="Of html, md and csv, with commas between.")] = "html,md,csv",
) -> None:
    """Write the report of a results folder: HTML that works offline, Markdown, CSV."""
    from harness.report import write_report
    from harness.store import read_records

    records = read_records(results)
    names = {record.spec.recipe for record in records}
    folder = out / (names.pop() if len(names) == 1 else results.resolve().name)
    for path in write_report(records, folder, formats.split(",")):
        typer.echo(path)


@app.command("list")
def list_plugins(what: Annotated[Listing, typer.Argument(help="What to list.")]) -> None:
    """List the methods, engines, metrics or texts that a recipe can name."""
    from harness.console import show_list

    show_list(what.value)


@app.command()
def doctor() -> None:
    """Say what works on this machine, what is missing, and the command that installs it."""
    from harness.console import show_doctor

    show_doctor()


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    import json

    from harness.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=1))


@stack_app.command("list")
def list_stacks(cache: CacheFolder = None) -> None:
    """List the stacks: what each is for, and whether it is made."""
    from harness.console import show_stacks

    show_stacks(_stacks(cache))


@stack_app.command("create")
def create_stack(name: StackName, cache: CacheFolder = None) -> None:
    """Make a stack's interpreter from its pinned requirements."""
    from harness.stacks.build import create

    stack = _stacks(cache)[name]
    create(stack, typer.echo)
    typer.echo(f"stack {name} is ready: {stack.python}")


@stack_app.command("check")
def check_stack(name: StackName, cache: CacheFolder = None, pythons: Pythons = None) -> None:
    """Say whether a stack holds what it was made with, and whether a worker starts in it."""
    from harness.stacks.build import check

    faults = check(_stacks(cache, pythons)[name])
    for fault in faults:
        typer.echo(fault, err=True)
    if faults:
        raise typer.Exit(ExitCode.USAGE)
    typer.echo(f"stack {name} is in order")


@stack_app.command("remove")
def remove_stack(name: StackName, cache: CacheFolder = None) -> None:
    """Delete a stack's folder."""
    from harness.stacks.build import remove

    typer.echo(f"stack {name} removed" if remove(_stacks(cache)[name]) else f"stack {name} was not there")


def _stacks(cache: Path | None, pythons: list[str] | None = None) -> Stacks:
    from harness.cache import default_folder
    from harness.stacks import Stacks, parse_pythons

    return Stacks((cache or default_folder()).absolute() / "stacks", parse_pythons(pythons or []))


def _create_missing(planned: Sequence[PlannedRun], stacks: Stacks) -> bool:
    """Makes the stacks whose absence alone keeps runs from being made. True where there were any."""
    from harness.stacks import MAIN
    from harness.stacks.build import create

    wanted = {run.spec.stack for run in planned} - {MAIN}
    missing = {stacks[name].absence: name for name in sorted(wanted)}
    names = [missing[why] for why in dict.fromkeys(run.unsupported for run in planned) if why and why in missing]
    for name in names:
        try:
            create(stacks[name], typer.echo)
        except HarnessError as error:  # its runs are recorded as unsupported; the others are made
            typer.echo(str(error), err=True)
    return bool(names)


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
        typer.echo(f"qharness: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception:  # noqa: BLE001 - the last line of defence says how to report it
        traceback.print_exc()
        typer.echo("qharness: an internal error; please report the lines above", err=True)
        sys.exit(ExitCode.INTERNAL)
