"""The front against the definition itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.stats.pareto import FEW_PAIRS, Direction, front, front_shares

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)
DIGIT = st.integers(0, 9)
DIRECTIONS = st.tuples(st.sampled_from(["lower", "higher"]), st.sampled_from(["lower", "higher"]))
PLACES = st.lists(st.tuples(DIGIT, st.integers(0, 2), DIGIT), min_size=1, max_size=25)


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


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=4), min_size=1), DIRECTIONS
)
def test_shares_are_those_of_the_fronts(
    points: list[list[tuple[int, int]]], directions: tuple[Direction, Direction]
) -> None:
    """``points`` holds each point's place in four draws."""
    axes = [np.array([[draws[number][axis] for draws in points] for number in range(4)], float) for axis in (0, 1)]
    fronts = [front([draws[number] for draws in points], directions) for number in range(4)]
    expected = [sum(index in found for found in fronts) / 4 for index in range(len(points))]
    assert front_shares(axes, directions) == pytest.approx(expected)


def test_ties_are_all_kept() -> None:
    assert front([(1, 1), (1, 1), (2, 1)], ("lower", "lower")) == (0, 1)


@pytest.mark.parametrize("point", [(1.0,), (1.0, float("nan"))])
def test_what_cannot_be_ordered_is_refused(point: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected 2 ordered numbers"):
        front([point], ("lower", "lower"))


@given(PLACES)
def test_the_front_of_three_axes_is_what_nothing_beats(points: list[tuple[int, int, int]]) -> None:
    def beats_everywhere(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))

    lower: tuple[Direction, ...] = ("lower", "lower", "lower")
    expected = tuple(
        place for place, point in enumerate(points) if not any(beats_everywhere(other, point) for other in points)
    )
    assert front(points, lower) == expected
    shares = front_shares([np.array([axis], float) for axis in zip(*points, strict=True)], lower)
    assert shares == tuple(float(place in expected) for place in range(len(points)))


def test_the_front_of_many_points_is_that_of_comparing_all() -> None:
    source = np.random.default_rng(3)
    for ties in (4, 30, 10**6):
        points = source.integers(0, ties, size=(300, 3)).astype(float)
        beaten = ((points[:, None] >= points).all(axis=2) & (points[:, None] > points).any(axis=2)).any(axis=1)
        assert front(points.tolist(), ("lower",) * 3) == tuple(np.flatnonzero(~beaten).tolist())


@pytest.mark.parametrize("points", [1, 5, FEW_PAIRS, FEW_PAIRS + 1])
def test_few_points_are_compared_pair_by_pair_with_the_same_result(points: int) -> None:
    """In draws with ties and infinities; the front of each draw is found alone."""
    generator = np.random.default_rng(points)
    axes = [generator.integers(0, 6, (40, points)).astype(float) for _ in range(3)]
    axes[0][generator.random((40, points)) < 0.1] = np.inf
    directions: tuple[Direction, ...] = ("lower", "higher", "lower")
    counts = np.zeros(points)
    for draw in range(40):
        counts[list(front([tuple(axis[draw, place] for axis in axes) for place in range(points)], directions))] += 1
    assert front_shares(axes, directions) == tuple((counts / 40).tolist())
