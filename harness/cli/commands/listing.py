"""``qharness list``, ``recipes``, ``doctor`` and ``schema``: names, built-in recipes, what works here, the format."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Optional

import typer

from harness.cli.options import built_in_names


class Listing(StrEnum):
    """The lists that ``list`` prints."""

    METHODS = "methods"
    ENGINES = "engines"
    METRICS = "metrics"
    TEXTS = "texts"


def list_plugins(what: Annotated[Listing, typer.Argument(help="What to list.")]) -> None:
    """List the methods, engines, metrics or texts that a recipe can name."""
    from harness.cli.render.plan import show_list

    show_list(what.value)


def recipes(
    name: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Argument(metavar="NAME", help="Print this recipe.", show_default=False, autocompletion=built_in_names),
    ] = None,
) -> None:
    """List the built-in recipes, or print one to start your own from: qharness recipes NAME > my.yaml"""
    from harness.recipe import read_built_in

    if name is None:
        from harness.cli.render.plan import show_recipes

        show_recipes()
    else:
        typer.echo(read_built_in(name), nl=False)


def doctor() -> None:
    """Show what works on this machine, what is missing, and the command that installs it."""
    from harness.cli.render.plan import show_doctor

    show_doctor()


def schema() -> None:
    """Print the JSON Schema of recipe files, for editors."""
    import json

    from harness.recipe import Recipe, file_schema

    typer.echo(json.dumps(file_schema(Recipe.model_json_schema()), indent=1))
