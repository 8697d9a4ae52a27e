"""``qharness list``, ``doctor`` and ``schema``: available names, what works here, the recipe format."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


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


def doctor() -> None:
    """Show what works on this machine, what is missing, and the command that installs it."""
    from harness.cli.render.plan import show_doctor

    show_doctor()


def schema() -> None:
    """Print the JSON Schema of recipe files, for editors."""
    import json

    from harness.recipe import Recipe, file_schema

    typer.echo(json.dumps(file_schema(Recipe.model_json_schema()), indent=1))
