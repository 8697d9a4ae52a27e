"""Recipes: the types of what the user writes, and a reader that knows the file and line of every value.

An unknown key is an error: nothing in a recipe is ever ignored.
"""

from harness.recipe.built_in import read_built_in
from harness.recipe.extends import file_schema
from harness.recipe.fields import BatchSizes, Bytes, Seconds
from harness.recipe.measure import Measure, Perplexity, Task, Throughput
from harness.recipe.sweep import EngineEntry, Entry, MethodEntry, Model, Recipe, load_recipe, recipe_at
from harness.recipe.text import Calibration, Generated, ScoredText, Text

__all__ = [
    "BatchSizes",
    "Bytes",
    "Calibration",
    "EngineEntry",
    "Entry",
    "Generated",
    "Measure",
    "MethodEntry",
    "Model",
    "Perplexity",
    "Recipe",
    "ScoredText",
    "Seconds",
    "Task",
    "Text",
    "Throughput",
    "file_schema",
    "load_recipe",
    "read_built_in",
    "recipe_at",
]
