"""KL by position and by the baseline's confidence: every token in one bin, means and intervals by clusters."""

from __future__ import annotations

import numpy as np
import pytest

from harness.core.record import Measurement
from harness.figures.derived.breakdown import by_confidence, by_position
from harness.stats.estimate import clustered_mean


def measured(metric: str, values: np.ndarray, windows: int) -> Measurement:
    per_window = len(values) // windows
    places = [(window, place) for window in range(windows) for place in range(1, per_window + 1)]
    return Measurement(
        metric,
        2,
        "nat",
        "lower",
        "paired",
        tuple(values.tolist()),
        item_ids=tuple(f"{window}:{place}" for window, place in places),
        cluster_ids=tuple(str(window) for window, _ in places),
    )


@pytest.mark.parametrize(
    ("context", "lows"),
    [
        (512, [0, 4, 8, 16, 32, 64, 128, 256]),
        (500, [0, 4, 8, 16, 32, 64, 128, 256]),
        (2048, [0, 16, 32, 64, 128, 256, 512, 1024]),
        (8, [1, 2, 4]),
    ],
)
def test_positions_fall_into_bins_that_double(context: int, lows: list[int]) -> None:
    """KL is the position here, so that a bin's mean is the middle of what it holds."""
    positions = np.tile(np.arange(1, context), 3).astype(float)
    bins = by_position(measured("kl", positions, 3))
    assert [each.low for each in bins] == lows
    assert [each.high for each in bins[:-1]] == lows[1:]
    assert sum(each.tokens for each in bins) == len(positions)
    for each in bins:
        held = positions[(positions >= each.low) & (positions < each.high)]
        assert each.mean.value == pytest.approx(held.mean())
        assert each.tokens == len(held)


def test_a_bin_has_the_clustered_interval_of_its_tokens() -> None:
    values = np.random.default_rng(0).exponential(1.0, 4 * 100)
    bins = by_position(measured("kl", values, 4))
    tail = values.reshape(4, 100)[:, 63:]
    expected = clustered_mean(measured("kl", tail.reshape(-1), 4))
    assert bins[-1].low == 64
    assert (bins[-1].mean.low, bins[-1].mean.high) == pytest.approx((expected.low, expected.high))
    assert bins[-1].mean.n == 4


def test_confidence_falls_into_tenths_and_certainty_into_the_last() -> None:
    confidence = np.array([0.0, 0.05, 0.1, 0.3, 0.95, 1.0])
    kl = np.array([1.0, 3.0, 5.0, 7.0, 9.0, 11.0])
    bins = by_confidence(measured("kl", kl, 2), measured("baseline_confidence", confidence, 2))
    assert [(each.low, each.tokens, each.mean.value) for each in bins] == [
        (0, 2, 2),
        (0.1, 1, 5),
        (0.3, 1, 7),
        (0.9, 2, 10),
    ]
    assert bins[-1].high == 1


def test_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same tokens"):
        by_confidence(measured("kl", np.ones(6), 2), measured("baseline_confidence", np.ones(6), 3))
