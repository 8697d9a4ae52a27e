"""Positions the names of points in a plot so that they cover neither one another nor other points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats.estimate import Floats

CHARACTER_PX, LINE_PX, GAP_PX = 6.4, 15.0, 4.0
OTHER_PX = 6.0
"""Half the width of a point without a name."""
FURTHEST_PX = 84
"""Maximum vertical distance between a point and its name."""


@dataclass(frozen=True)
class Box:
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, frame: Box) -> float:
        """The area beyond a frame."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(frame)


def place(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    width: float,
    height: float,
    radii: Sequence[float],
    others: Sequence[tuple[float, float]] = (),
) -> list[tuple[float, float]]:
    """Offsets from each point to the middle of its name; all in pixels, from the lower left, y upwards.

    ``radii`` are those of the points' markers. ``others`` are points without a name, which no name should cover.
    Greedy: from the top down, each name takes the place near its point that covers least.
    """
    frame = Box(4, 14, width + 21, height)
    sizes = (*radii, *[OTHER_PX] * len(others))
    taken = [Box(x - r, y - r, x + r, y + r) for (x, y), r in zip((*points, *others), sizes, strict=True)]
    offsets = [(0.0, 0.0)] * len(points)
    for index in sorted(range(len(points)), key=lambda each: (-points[each][1], points[each][0])):
        (x, y), radius = points[index], radii[index]
        half = len(names[index]) * CHARACTER_PX / 2
        near = [box for box in taken if _near(box, x, y, half + radius + GAP_PX)]
        tried = [(dx, dy, _box(x + dx, y + dy, half)) for dx, dy in _candidates(half + radius + GAP_PX)]
        covered = _covered([box for _, _, box in tried], near)
        dx, dy, box = min(zip(tried, covered, strict=True), key=lambda each: _cost(each[0], each[1], frame))[0]
        taken.append(box)
        offsets[index] = (dx, dy)
    return offsets


def _candidates(beside: float) -> Iterator[tuple[float, float]]:
    """Right, left, above and below, then further out. ``beside`` is how far away a name at the side is."""
    for rise in (0, 16, -16, 30, -30, 46, -46, 64, -64, FURTHEST_PX, -FURTHEST_PX):
        side = beside + abs(rise) / 4
        yield side, rise
        yield -side, rise
        if rise:
            yield 0, rise


def _near(box: Box, x: float, y: float, beside: float) -> bool:
    """Whether any position of a name could cover the box."""
    width, height = 2 * beside + FURTHEST_PX / 4, FURTHEST_PX + LINE_PX
    return box.left < x + width and box.right > x - width and box.bottom < y + height and box.top > y - height


def _box(x: float, y: float, half: float) -> Box:
    return Box(x - half, y - LINE_PX / 2, x + half, y + LINE_PX / 2)


def _covered(boxes: Sequence[Box], taken: Sequence[Box]) -> list[float]:
    """For each box, the area that all ``taken`` ones together cover of it."""
    if not taken:
        return [0.0] * len(boxes)
    mine, theirs = _sides(boxes)[:, :, None], _sides(taken)[:, None, :]
    width = np.minimum(mine[2], theirs[2]) - np.maximum(mine[0], theirs[0])
    height = np.minimum(mine[3], theirs[3]) - np.maximum(mine[1], theirs[1])
    areas = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    return [float(total) for total in areas.cumsum(axis=1)[:, -1]]


def _sides(boxes: Sequence[Box]) -> Floats:
    """Left, bottom, right and top: (4, n)."""
    return np.array([(box.left, box.bottom, box.right, box.top) for box in boxes], dtype=np.float64).T


def _cost(candidate: tuple[float, float, Box], covered: float, frame: Box) -> float:
    """Square pixels covered or beyond the frame, and a little for distance."""
    dx, dy, box = candidate
    return covered + 4 * box.outside(frame) + 0.15 * abs(dx) + 0.8 * abs(dy)
