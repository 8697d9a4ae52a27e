"""Asks the servers that a recipe names whether they have its models. Planning itself asks none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from harness import plugins as registry
from harness.core.capability import Endpoint
from harness.core.format import SERVED_FORMAT
from harness.core.job import VariantJob
from harness.errors import RunError
from harness.libraries.openai_api import OpenAIClient
from harness.planning.expand import expand
from harness.planning.plan import PlannedRun
from harness.recipe import Recipe
from harness.recipe.yaml_file import Location

TIMEOUT_S = 5.0
"""How long a server may take to say which models it has."""


def endpoints(runs: Iterable[PlannedRun]) -> frozenset[Endpoint]:
    """The servers of the user's that these runs ask, unless they are unsupported."""
    asking = (run.spec.method for run in runs if not run.unsupported and isinstance(run.spec.job, VariantJob))
    return frozenset(method.endpoint for method in asking if method.endpoint is not None)


def ask_servers(recipe: Recipe, runs: Iterable[PlannedRun]) -> None:
    """Asks each server of these runs of the recipe once.

    Raises RecipeError, at the entry that names it, for one that does not answer or lacks the model.
    """
    waiting = set(endpoints(runs))
    for endpoint, place in _named(recipe) if waiting else ():
        if endpoint not in waiting:
            continue
        waiting.remove(endpoint)
        try:
            OpenAIClient(endpoint, TIMEOUT_S, retries=0).served()
        except RunError as error:
            raise recipe.error(place, str(error)) from None


def _named(recipe: Recipe) -> Iterator[tuple[Endpoint, Location]]:
    """The servers that a recipe names, each with its entry."""
    entries = {("baseline",): recipe.baseline} | {("methods", i): each for i, each in enumerate(recipe.methods)}
    for location, entry in entries.items():
        if registry.method(entry.name).output_format == SERVED_FORMAT:
            for choice in expand(recipe, entry, location):
                if choice.ref.endpoint is not None:
                    yield choice.ref.endpoint, (*location, entry.name)
