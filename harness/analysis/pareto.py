"""The Pareto front: what no other point beats in every respect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Direction = Literal["lower", "higher"]


def front(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> tuple[int, ...]:
    """Indices, ascending, of the points that no other point dominates; equal points are all kept.

    A point dominates another if it is nowhere worse and somewhere better; ``directions`` say, per
    coordinate, what better is. Raises ValueError where a point has not one number per direction, or NaN,
    which has no order.
    """
    signs = [-1.0 if direction == "higher" else 1.0 for direction in directions]
    costs = [_costs(point, signs) for point in points]
    return tuple(index for index, cost in enumerate(costs) if not any(_dominates(other, cost) for other in costs))


def _costs(point: Sequence[float], signs: Sequence[float]) -> tuple[float, ...]:
    if len(point) != len(signs) or any(math.isnan(value) for value in point):
        raise ValueError(f"expected {len(signs)} ordered numbers, not {tuple(point)}")
    return tuple(sign * value for sign, value in zip(signs, point, strict=True))


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
