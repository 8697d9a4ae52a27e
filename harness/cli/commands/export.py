"""``qharness export``: figures for other tools."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.options import Results
from harness.report.terminal import say

export_app = typer.Typer(help="Export figures to other tools.", no_args_is_help=True, rich_markup_mode=None)


@export_app.callback()
def tools() -> None:
    """Export figures to other tools."""


@export_app.command()
def mlflow(
    results: Results,
    tracking_uri: Annotated[
        str,
        typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", metavar="URI", help="An MLflow server or store."),
    ],
    experiment: Annotated[
        str, typer.Option("--experiment", metavar="NAME", help="The experiment; created if needed.")
    ] = "qharness",
) -> None:
    """Log a run per session, a child run per variant, and the report. Sessions already logged are skipped."""
    from harness.api.report import export_to_mlflow

    for each in export_to_mlflow(results, tracking_uri, experiment):
        what = "already logged" if each.variants is None else f"{each.variants} variants"
        say(f"session {each.session}: run {each.run_id}, {what}")
