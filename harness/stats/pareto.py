"""The Pareto front: the points that no other point dominates."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.stats.estimate import Floats

Direction = Literal["lower", "higher"]
FEW_POINTS = 50
"""With fewer, the front is found as quickly without a search for good points."""
FEW_PAIRS = 32
"""Up to so many points are compared pair by pair, in all draws at once."""
MOST_PLACES = 500_000
"""Points times draws that are compared at once."""
_WEIGHTS = np.array([[1, 1, 1], [5, 1, 1], [1, 5, 1], [1, 1, 5]])
"""Of the axes: each row has one point that is good on most, or on one."""


def front(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> tuple[int, ...]:
    """Indices, ascending, of the points that no other point dominates; equal points are all kept.

    A point dominates another if it is nowhere worse and somewhere better; ``directions``, two or three, say, per
    coordinate, what better is. Raises ValueError if a point does not have one number per direction, or has a NaN,
    which has no order.
    """
    for point in points:
        if len(point) != len(directions) or any(math.isnan(value) for value in point):
            raise ValueError(f"expected {len(directions)} ordered numbers, not {tuple(point)}")
    table = np.array(points, dtype=np.float64).reshape(len(points), len(directions))
    (unbeaten,) = _fronts(_costs([axis[None] for axis in table.T], directions))
    return tuple(sorted(unbeaten))


def front_shares(axes: Sequence[Floats], directions: Sequence[Direction]) -> tuple[float, ...]:
    """The share of the draws in which each point is on the front; each of two or three axes is (draws, points)."""
    draws, points = axes[0].shape
    counts = np.zeros(points, dtype=np.int64)
    together = max(MOST_PLACES // max(points, 1), 1)
    for start in range(0, draws, together):
        costs = _costs([axis[start : start + together] for axis in axes], directions)
        if points <= FEW_PAIRS and not np.isnan(costs).any():
            counts += np.count_nonzero(~_beaten(costs), axis=0)
            continue
        for unbeaten in _fronts(costs):
            counts[unbeaten] += 1
    return tuple((counts / draws).tolist())


def _beaten(costs: Floats) -> npt.NDArray[np.bool_]:
    """The points, (draws, points), that another one dominates; NaN has no order."""
    beaten: npt.NDArray[np.bool_] = np.zeros(costs.shape[1:], dtype=bool)
    for point in range(costs.shape[2]):
        one = costs[:, :, point, None]
        beaten |= (one <= costs).all(axis=0) & (one < costs).any(axis=0)
    return beaten


def _fronts(costs: Floats) -> Iterator[list[int]]:
    """For each draw of (axes, draws, points), the points that no other dominates; equal points are all kept."""
    for number, stay in enumerate(_not_clearly_beaten(costs)):
        left = np.flatnonzero(stay)
        yield _unbeaten(left, costs[:, number, left])


def _unbeaten(left: npt.NDArray[np.intp], costs: Floats) -> list[int]:
    """Of the points ``left``, with ``costs`` on three axes, those that no other dominates.

    In lexicographic order whatever beats a point comes before it. So the question is only whether an earlier point is
    nowhere worse on the other two axes: the smallest third cost of those with a second cost up to the point's. Earlier
    points that matter form a staircase, with rising ``seconds`` and falling ``thirds`` (Kung, Luccio and Preparata,
    "On finding the maxima of a set of vectors", JACM 22, 1975).
    """
    first, second, third = costs
    order = np.lexsort((third, second, first))
    kept: list[int] = []
    seconds: list[float] = []
    thirds: list[float] = []
    last: tuple[float, float, float] | None = None
    last_is_kept = False
    places = zip(left[order].tolist(), *(axis[order].tolist() for axis in (first, second, third)), strict=True)
    for index, one, two, three in places:
        if (one, two, three) != last:
            last = one, two, three
            after = bisect_right(seconds, two)
            last_is_kept = after == 0 or thirds[after - 1] > three
            if last_is_kept:
                start = end = bisect_left(seconds, two)
                while end < len(thirds) and thirds[end] >= three:
                    end += 1
                seconds[start:end] = [two]
                thirds[start:end] = [three]
        if last_is_kept:
            kept.append(index)
    return kept


def _not_clearly_beaten(costs: Floats) -> npt.NDArray[np.bool_]:
    """The points, (draws, points), that none of a few good ones dominates: most of many points are beaten by those.

    What such a point would beat is beaten by whatever beats it, so that the front of the rest is that of all.
    """
    stay: npt.NDArray[np.bool_] = np.ones(costs.shape[1:], dtype=bool)
    if costs.shape[2] < FEW_POINTS:
        return stay
    least = costs.min(axis=2, keepdims=True)
    with np.errstate(all="ignore"):  # an axis on which all are equal, or one is infinite
        shares = np.nan_to_num((costs - least) / (costs.max(axis=2, keepdims=True) - least))
    for weights in _WEIGHTS:
        best = np.tensordot(weights, shares, axes=1).argmin(axis=1)
        good = np.take_along_axis(costs, best[None, :, None], axis=2)
        stay &= ~((costs >= good).all(axis=0) & (costs > good).any(axis=0))
    return stay


def _costs(axes: Sequence[Floats], directions: Sequence[Direction]) -> Floats:
    """Three axes of which lower is better everywhere; on the third all are equal if only two are given."""
    first, second, *rest = (
        -axis if direction == "higher" else axis for axis, direction in zip(axes, directions, strict=True)
    )
    (third,) = rest or (np.zeros_like(first),)
    return np.stack((first, second, third))
