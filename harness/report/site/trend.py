"""A figure over time as a small line, for a cell of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, EDGE = 140, 28, 4
MOST_NAMED = 12
"""Of more values than these only the first, the lowest, the highest and the last are read out."""

Point = tuple[float, float | None, float | None]
"""A value and the ends of its interval, if it has one."""


@dataclass(frozen=True)
class Trend:
    """``line`` are the points of an SVG polyline, ``bars`` intervals as x, y and y, ``words`` what a reader hears."""

    line: str
    dots: tuple[tuple[float, float], ...]
    bars: tuple[tuple[float, float, float], ...]
    words: str


def trend(points: Sequence[Point], texts: Sequence[str]) -> Trend:
    """The points from left to right in equal steps, between the lowest and the highest value.

    An interval beyond that range is cut off, so that one without bounds does not flatten the line.
    """
    values = [value for value, _, _ in points]
    low, high = min(values), max(values)
    margin = (high - low) / 2 or abs(high) / 2 or 1.0
    bottom, top = low - margin, high + margin

    def x(place: int) -> float:
        return WIDTH / 2 if len(points) == 1 else EDGE + place * (WIDTH - 2 * EDGE) / (len(points) - 1)

    def y(value: float) -> float:
        share = (min(max(value, bottom), top) - bottom) / (top - bottom)
        return round(HEIGHT - EDGE - share * (HEIGHT - 2 * EDGE), 1)

    dots = tuple((round(x(place), 1), y(value)) for place, value in enumerate(values))
    bars = tuple(
        (dots[place][0], y(least), y(most))
        for place, (_, least, most) in enumerate(points)
        if least is not None and most is not None
    )
    return Trend(" ".join(f"{across},{down}" for across, down in dots), dots, bars, _words(values, texts))


def _words(values: Sequence[float], texts: Sequence[str]) -> str:
    if len(texts) <= MOST_NAMED:
        return ", ".join(texts)
    lowest, highest = values.index(min(values)), values.index(max(values))
    return f"{len(texts)} values from {texts[0]} to {texts[-1]}, between {texts[lowest]} and {texts[highest]}"
