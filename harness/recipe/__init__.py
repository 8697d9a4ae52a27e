"""The recipe: what the user writes. Pure data; names of plugins are looked up by the planner.

A key that is unknown is refused, and so is one that is reserved for later: nothing that a recipe
says is ever ignored.
"""

from harness.recipe.fields import Bytes, NotBuilt, PositiveInts, Seconds
from harness.recipe.measure import Measure, Perplexity, Task, Throughput
from harness.recipe.sweep import MethodEntry, Model, Recipe, load_recipe
from harness.recipe.text import Calibration, Text

__all__ = [
    "Bytes",
    "Calibration",
    "Measure",
    "MethodEntry",
    "Model",
    "NotBuilt",
    "Perplexity",
    "PositiveInts",
    "Recipe",
    "Seconds",
    "Task",
    "Text",
    "Throughput",
    "load_recipe",
]
