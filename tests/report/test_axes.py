"""How far an axis reaches: to the ends of the intervals, unless one of them bounds hardly anything."""

from __future__ import annotations

import math

from harness.report.plots.axes import cut_off, reach
from harness.report.plots.theme import ruler
from harness.stats.estimate import Estimate


def plain(value: float) -> float:
    return value


def ends(*found: tuple[float, float | None, float | None], room: float = 0.0) -> tuple[float, float]:
    return reach([Estimate(value, low, high, 3, "made up") for value, low, high in found], plain, room)


def test_an_axis_holds_intervals_of_the_usual_width() -> None:
    assert ends((1, 0.5, 2), (3, 2, 5)) == (0.5, 5)
    assert ends((10, 9, 11.5), (10, 8, 12)) == (8, 12), "no two figures apart: the intervals alone"
    assert ends((1, 0.5, 2), (3, 2, 5), room=0.1) == (0.5 - 0.45, 5 + 0.45)


def test_an_interval_that_bounds_nothing_does_not_stretch_an_axis() -> None:
    """The figures are 2 apart and the median distance to an end is 0.1, so there is room for 2 on either side."""
    wide, usual = (2.0, 2.2e-9, 6.4e9), [(1.0, 0.9, 1.1), (3.0, 2.9, 3.1)]
    assert ends(*usual, wide) == (2.2e-9, 5)
    found = [Estimate(*each, 3, "made up") for each in (*usual, wide)]
    assert cut_off(found, plain, (2.2e-9, 5))
    assert not cut_off(found[:2], plain, (0.9, 3.1))


def test_an_interval_without_an_end_and_a_lone_figure_have_an_axis() -> None:
    assert ends((2, None, None), (4, 1, math.inf)) == (1, 4)
    low, high = ends((2, None, None))
    assert low < 2 < high


def test_a_logarithmic_axis_without_two_powers_of_ten_is_numbered_between_them() -> None:
    assert ruler("KL", (-3.2, 0.5), log=True)["dtick"] == 1
    assert ruler("KL", (-0.6, -0.4), log=True)["dtick"] is None
    assert ruler("KL", (-0.6, 0.4), log=True)["dtick"] is None
    assert ruler("KL", None, log=True)["dtick"] == 1
