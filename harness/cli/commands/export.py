"""``qharness export``: figures into other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

export_app = typer.Typer(help="Figures into other tools.", no_args_is_help=True, rich_markup_mode=None)


@export_app.callback()
def tools() -> None:
    """Figures into other tools."""


@export_app.command()
def mlflow(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder.")],
    tracking_uri: Annotated[
        str,
        typer.Option(
            "--tracking-uri", envvar="MLFLOW_TRACKING_URI", metavar="URI", help="A server or a store of MLflow."
        ),
    ],
    experiment: Annotated[
        str, typer.Option("--experiment", metavar="NAME", help="Where the runs go; made if need be.")
    ] = "qharness",
) -> None:
    """Log a run for each session, below it one for each variant, and the report. What is there is not logged again."""
    from harness.api.report import export_to_mlflow

    for each in export_to_mlflow(results, tracking_uri, experiment):
        what = "there already" if each.variants is None else f"{each.variants} variants"
        typer.echo(f"session {each.session}: run {each.run_id}, {what}")
