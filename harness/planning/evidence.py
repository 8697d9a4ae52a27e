"""How many values a recipe asks for in one record, which keeps a limited number: a run that exceeds it takes hours.

Only what the recipe says in numbers is counted here. The rest is looked at as soon as it is known: how many tokens a
text has, before the reference of it is made; how many questions a task has, before they are asked. Of answers under
load whose length is up to the model, a run leaves out times between tokens, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.core.workload import GENERATED, PerplexityWorkload, ServingWorkload, TaskWorkload
from harness.metrics.divergence import QUANTITIES
from harness.metrics.serving import values_per_request
from harness.recipe import Recipe
from harness.recipe.yaml_file import Location
from harness.storage.evidence import find_excess
from harness.tasks.answers import values_per_question
from harness.text.protocols import PRESETS


def validate_evidence(
    recipe: Recipe, texts: Sequence[PerplexityWorkload], tasks: Sequence[TaskWorkload], serving: ServingWorkload | None
) -> None:
    """Raises RecipeError for a measurement with more values than a record may have."""
    for index, text in enumerate(texts):
        _validate_text(recipe, text, ("measure", "perplexity", index, "windows"))
    for task in tasks:
        _validate_task(recipe, task)
    if serving is not None:
        _validate_serving(recipe, serving)
    _validate_grid(recipe)


def _validate_text(recipe: Recipe, text: PerplexityWorkload, place: Location) -> None:
    """A file that is too short for its windows is scored whole, and the tokens of that are counted later."""
    if text.windows is None or text.protocol == GENERATED or recipe.measure.divergence is None:
        return
    scored = PRESETS[text.protocol].scored(text.context, text.stride)
    file = None if text.text.path is None else Path(text.text.path)
    if file is not None and file.stat().st_size < text.windows * scored:
        return
    _refuse(
        recipe,
        place,
        text.windows * scored * len(QUANTITIES),
        f"{len(QUANTITIES)} values of divergence for each of {scored:,} tokens in {text.windows:,} windows",
        "lower it, or leave out 'divergence'",
    )


def _validate_task(recipe: Recipe, task: TaskWorkload) -> None:
    if task.limit is not None:
        each = values_per_question(task.samples)
        how = f"{each:,} values for each of {task.limit:,} questions of {task.name}, with samples: {task.samples:,}"
        _refuse(recipe, ("measure", "tasks"), task.limit * each, how, "lower 'limit' or 'samples'")


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
