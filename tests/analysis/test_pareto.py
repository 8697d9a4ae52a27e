"""The front against the definition itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.pareto import Direction, front

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)
DIRECTIONS = st.tuples(st.sampled_from(["lower", "higher"]), st.sampled_from(["lower", "higher"]))


def beats(one: tuple[int, int], other: tuple[int, int], directions: tuple[Direction, Direction]) -> bool:
    """One is better somewhere and worse nowhere."""
    gains = [
        (theirs - mine) if direction == "lower" else (mine - theirs)
        for mine, theirs, direction in zip(one, other, directions, strict=True)
    ]
    return max(gains) > 0 and min(gains) >= 0


@given(POINTS, DIRECTIONS)
def test_front_is_what_nothing_beats(points: list[tuple[int, int]], directions: tuple[Direction, Direction]) -> None:
    expected = tuple(
        index for index, point in enumerate(points) if not any(beats(other, point, directions) for other in points)
    )
    assert front(points, directions) == expected


def test_ties_are_all_kept() -> None:
    assert front([(1, 1), (1, 1), (2, 1)], ("lower", "lower")) == (0, 1)


@pytest.mark.parametrize("point", [(1.0,), (1.0, float("nan"))])
def test_what_cannot_be_ordered_is_refused(point: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected 2 ordered numbers"):
        front([point], ("lower", "lower"))
