"""Partially pooled means against conditioning of the joint normal distribution, written out as matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.stats.nested import NestedMeans, Path

PATHS = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"))
SPREADS = st.tuples(*[st.floats(0.05, 2.0)] * 3)


def _covariance(one: Path, other: Path, spreads: tuple[float, ...]) -> float:
    """Of the means of two groups: the offsets that they share."""
    shared = [True]
    for left, right in zip(one, other, strict=True):
        shared.append(shared[-1] and left == right)
    return sum(spread**2 for spread, same in zip(spreads, shared, strict=True) if same)


@given(st.lists(st.tuples(PATHS, st.floats(-3, 3)), max_size=12), PATHS, SPREADS, st.floats(0.05, 1.0))
def test_as_the_joint_normal_distribution_conditioned_on_the_values(
    values: list[tuple[Path, float]], asked: Path, spreads: tuple[float, ...], noise: float
) -> None:
    made = NestedMeans(values, spreads, noise).estimate(asked)
    prior = sum(spread**2 for spread in spreads)
    if not values:
        assert (made.mean, made.variance) == (0.0, pytest.approx(prior))
        return
    paths, numbers = [path for path, _ in values], np.array([value for _, value in values])
    among = np.array([[_covariance(one, other, spreads) for other in paths] for one in paths])
    among += noise**2 * np.eye(len(paths))
    towards = np.array([_covariance(asked, path, spreads) for path in paths])
    gain = np.linalg.solve(among, towards)
    assert made.mean == pytest.approx(gain @ numbers, abs=1e-8)
    assert made.variance == pytest.approx(prior - gain @ towards, rel=1e-6, abs=1e-9)


def test_counts_by_level_and_refuses_paths_of_another_length() -> None:
    means = NestedMeans([(("a", "x"), 1.0), (("a", "x"), 1.0), (("a", "y"), 2.0), (("b", "x"), 3.0)], (1, 1, 1), 0.1)
    assert means.counts(("a", "x")) == (4, 3, 2)
    assert means.counts(("c", "x")) == (4, 0, 0)
    with pytest.raises(ValueError, match="names 1 groups"):
        NestedMeans([(("a",), 1.0)], (1, 1, 1), 0.1)
