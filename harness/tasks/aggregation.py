"""lm-eval's aggregations that are functions of a mean over questions. Pure.

Such a figure has one value per question, so that a variant can be paired with the baseline question by question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.stats.estimate import exponential

HEADLINES = ("acc_norm", "acc", "exact_match")
"""The scores that may represent a task, by priority; without any of them, its first score does."""
FIGURES: Mapping[str, Callable[[float], float]] = {
    "mean": lambda mean: mean,
    "nanmean": lambda mean: mean,
    "perplexity": exponential,
    "weighted_perplexity": exponential,
    "bits_per_byte": lambda nat: nat / math.log(2),
}
"""The function from the weighted mean of ``kept``'s values to the figure, by the name of lm-eval's aggregation."""


def kept(scores: Sequence[Any], how: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """A value and a weight per question (no weights: all equal); None if the figure is not a function of a mean.

    Log-likelihoods become negative log-likelihoods in nats; those that come with a length become nats per unit of it.
    """
    if how not in FIGURES:
        return None
    if how in ("weighted_perplexity", "bits_per_byte"):
        return tuple(-nat / size for nat, size in scores), tuple(float(size) for _, size in scores)
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        return None
    return tuple(-float(score) if how == "perplexity" else float(score) for score in scores), ()


def headline(scores: Sequence[str]) -> str | None:
    """The score that represents a task, of those that it has, in its order."""
    ranked = {name: rank for rank, name in enumerate(HEADLINES)}
    return min(scores, key=lambda name: ranked.get(name, len(HEADLINES)), default=None)


def mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted mean of the values; without weights, the plain mean."""
    if not weights:
        return math.fsum(values) / len(values)
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / math.fsum(weights)
