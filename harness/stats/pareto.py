"""The Pareto front: the points that no other point dominates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.stats.estimate import Floats

Direction = Literal["lower", "higher"]


def front(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> tuple[int, ...]:
    """Indices, ascending, of the points that no other point dominates; equal points are all kept.

    A point dominates another if it is nowhere worse and somewhere better; ``directions`` say, per
    coordinate, what better is. Raises ValueError if a point does not have one number per direction, or has a NaN,
    which has no order.
    """
    signs = [-1.0 if direction == "higher" else 1.0 for direction in directions]
    costs = [_costs(point, signs) for point in points]
    kept: dict[int, tuple[float, ...]] = {}
    for index in sorted(range(len(costs)), key=costs.__getitem__):  # whatever beats a point comes before it
        if not any(_dominates(other, costs[index]) for other in kept.values()):
            kept[index] = costs[index]
    return tuple(sorted(kept))


def front_shares(axes: Sequence[Floats], directions: Sequence[Direction]) -> tuple[float, ...]:
    """The share of the draws in which each point is on the front; each axis is (draws, points)."""
    costs = [-axis if direction == "higher" else axis for axis, direction in zip(axes, directions, strict=True)]
    shares = np.zeros(costs[0].shape[1])
    rivals = _sometimes_unbeaten(costs)
    drawn = [cost[:, rivals] for cost in costs]
    shares[rivals] = [np.mean(~_beaten(drawn, place)) for place in range(len(rivals))]
    return tuple(shares.tolist())


def _sometimes_unbeaten(costs: Sequence[Floats]) -> npt.NDArray[np.int64]:
    """All points except those that one other point beats in every draw. That point also beats whatever they beat."""
    best, worst = ([reach(cost, axis=0)[None, :] for cost in costs] for reach in (np.min, np.max))
    points = range(costs[0].shape[1])
    beaten = [
        np.logical_and.reduce([high <= low[:, [point]] for low, high in zip(best, worst, strict=True)])
        & np.logical_or.reduce([high < low[:, [point]] for low, high in zip(best, worst, strict=True)])
        for point in points
    ]
    return np.flatnonzero([not found.any() for found in beaten])


def _beaten(costs: Sequence[Floats], point: int) -> npt.NDArray[np.bool_]:
    """Whether another point dominates this one, in each draw: (draws,)."""
    nowhere_worse = np.logical_and.reduce([cost <= cost[:, [point]] for cost in costs])
    better = np.logical_or.reduce([cost < cost[:, [point]] for cost in costs])
    return np.asarray((nowhere_worse & better).any(axis=1))


def _costs(point: Sequence[float], signs: Sequence[float]) -> tuple[float, ...]:
    if len(point) != len(signs) or any(math.isnan(value) for value in point):
        raise ValueError(f"expected {len(signs)} ordered numbers, not {tuple(point)}")
    return tuple(sign * value for sign, value in zip(signs, point, strict=True))


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
