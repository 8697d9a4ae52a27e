"""How many values a recipe asks for in one record, which keeps a limited number: a run that exceeds it takes hours.

Only what is certain is refused here. The rest is looked at as soon as it is known: how many tokens a text has, before
the reference of it is made; how many questions a task has, before they are asked. Of answers under load whose length is
up to the model, a run leaves out times between tokens, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.core.workload import GENERATED, PerplexityWorkload, ServingWorkload, TextRef
from harness.metrics.divergence import QUANTITIES
from harness.metrics.serving import values_per_request
from harness.recipe import Recipe
from harness.recipe.yaml_file import Location
from harness.storage.evidence import find_excess
from harness.text.protocols import PRESETS
from harness.text.sources import is_plain

MOST_TOKEN_BYTES = 8
"""No text has longer tokens on average: those of English prose have 4 to 5 bytes with the largest vocabularies."""


def validate_evidence(recipe: Recipe, texts: Sequence[PerplexityWorkload], serving: ServingWorkload | None) -> None:
    """Raises RecipeError for a measurement with more values than a record may have."""
    for index, text in enumerate(texts):
        _validate_text(recipe, text, ("measure", "perplexity", index, "windows"))
    if serving is not None:
        _validate_serving(recipe, serving)
    _validate_grid(recipe)


def _validate_text(recipe: Recipe, text: PerplexityWorkload, place: Location) -> None:
    """A text that may be too short for its windows is then scored whole, and the tokens of that are counted later."""
    if text.windows is None or text.protocol == GENERATED or recipe.measure.divergence is None:
        return
    scored = PRESETS[text.protocol].scored(text.context, text.stride)
    if _fewest_tokens(text.text) < text.windows * scored:
        return
    _refuse(
        recipe,
        place,
        text.windows * scored * len(QUANTITIES),
        f"{len(QUANTITIES)} values of divergence for each of {scored:,} tokens in {text.windows:,} windows",
        "lower it, or leave out 'divergence'",
    )


def _fewest_tokens(text: TextRef) -> int:
    """How many tokens a text has at the least; 0 if it is on a hub, or if its file holds more than the text."""
    return Path(text.path).stat().st_size // MOST_TOKEN_BYTES if text.path is not None and is_plain(text) else 0


def _validate_serving(recipe: Recipe, load: ServingWorkload) -> None:
    requests, each = sum(map(load.requests_at, load.levels)), values_per_request(load)
    how = f"{each:,} values for each of {requests:,} requests at {len(load.levels)} levels"
    gaps = "" if load.natural else f", {load.new_tokens - 1:,} of them times between tokens"
    lower = "lower 'requests' or 'duration', 'new_tokens' or the number of levels, or divide these into several recipes"
    _refuse(recipe, ("measure", "serving"), requests * each, how + gaps, lower)


def _validate_grid(recipe: Recipe) -> None:
    grid = recipe.measure.throughput
    if grid is not None:
        points, each = len(grid.batch_sizes) * len(grid.prompt_tokens), grid.iterations * (1 + grid.new_tokens)
        how = f"{each:,} values at each of {points:,} points of the grid, iterations × (1 + new_tokens)"
        lower = "lower 'iterations' or 'new_tokens', or name fewer points"
        _refuse(recipe, ("measure", "throughput"), points * each, how, lower)


def _refuse(recipe: Recipe, place: Location, values: int, how: str, lower: str) -> None:
    excess = find_excess(values)
    if excess is not None:
        raise recipe.error(place, f"{excess}: {how}; {lower}")
