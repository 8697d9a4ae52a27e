"""The recipes of this repository can be planned.

Planning them hashes real models and reads configurations in processes that import transformers.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.api.plan import plan
from harness.core.model import MAIN_ENGINE
from harness.core.site import MAIN, Machine
from harness.errors import RecipeError
from harness.recipe import load_recipe

pytestmark = pytest.mark.heavy

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
MACHINE = Machine("cpu", "a test machine")
H100 = Machine("cuda", "an imagined H100", (9, 0))


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_can_be_planned(path: Path) -> None:
    recipe = load_recipe(path)
    try:
        planned = plan(recipe, H100 if recipe.device == "cuda" else MACHINE)
    except RecipeError as error:
        if "is not installed" not in str(error):
            raise
        pytest.skip(f"the recipe's model is in a package that is absent here: {error}")
    assert {run.spec.recipe for run in planned} == {recipe.name}
    here = [run for run in planned if run.spec.stack == MAIN]  # another stack may not be made here
    baselines = [run.unsupported for run in here if run.spec.is_baseline]
    assert baselines or not any(run.spec.engine == MAIN_ENGINE for run in planned if run.spec.job.measures_variant)
    assert not any(baselines)
