"""``qharness baseline``: named sets of records, for ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.cli.options import BaselinesFolder, Results
from harness.errors import ResultsError
from harness.report.terminal import say

baseline_app = typer.Typer(
    help="Keep records under a name, to compare with later.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The baseline's name.")]


@baseline_app.command("set")
def set_baseline(
    name: Name,
    results: Results,
    session: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Option(
            "--session", metavar="ID", help="Only what this session or run measured; the start of its id is enough."
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an existing baseline.")] = False,
    baselines: BaselinesFolder = Path("baselines"),
) -> None:
    """Copy the relevant records of a results folder to a baseline's folder, which can be committed."""
    from harness.api.baselines import Baselines
    from harness.api.results import read_folder

    contents = read_folder(results, session)
    for damaged in contents.damaged:
        if not damaged.log_only:  # whatever is compared with the baseline would pass where its record is missing
            raise ResultsError(f"{damaged.sentence}. A baseline needs all records; 'qharness run' makes this one again")
        say(damaged.remark, error=True)
    say(Baselines(baselines).set(name, contents.records, replace))


@baseline_app.command("list")
def list_baselines(baselines: BaselinesFolder = Path("baselines")) -> None:
    """List the baselines: when each was measured, and what it contains."""
    from harness.api.baselines import Baselines

    kept = Baselines(baselines)
    names = kept.names()
    if not names:
        say(f"no baselines in {baselines}; create one with 'qharness baseline set NAME RESULTS'")
    for name in names:
        try:
            baseline = kept.read(name)
        except ResultsError as error:  # the others can still be listed
            say(f"{name}: {error}", error=True)
            continue
        for damaged in baseline.damaged:
            say(damaged.remark, error=True)
        records = baseline.records
        newest = max(record.started_at for record in records)
        methods = ", ".join(dict.fromkeys(record.spec.method.label for record in records))
        models = ", ".join(dict.fromkeys(record.spec.model.label for record in records))
        say(f"{name}  {newest[:19]}  {len(records)} runs of {models}: {methods}")


@baseline_app.command("remove")
def remove_baseline(name: Name, baselines: BaselinesFolder = Path("baselines")) -> None:
    """Delete a baseline's folder."""
    from harness.api.baselines import Baselines

    say(f"removed {Baselines(baselines).remove(name)}")
