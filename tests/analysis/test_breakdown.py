"""KL by position and by the baseline's confidence: every token in one bin, means and intervals by clusters."""

from __future__ import annotations

import numpy as np
import pytest

from harness.core.record import Measurement
from harness.figures.derived.breakdown import by_confidence, by_position, growth
from harness.stats.estimate import clustered_mean


def measured(metric: str, values: np.ndarray, windows: int, protocol: str = "gptq") -> Measurement:
    per_window = len(values) // windows
    places = [(window, place) for window in range(windows) for place in range(1, per_window + 1)]
    return Measurement(
        metric,
        2,
        "nat",
        "lower",
        "paired",
        tuple(values.tolist()),
        {"protocol": protocol},
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


def test_bins_that_end_at_the_same_place_are_the_same() -> None:
    """So that a noise floor on shorter windows can be drawn beside a variant."""
    long, short = np.ones(2 * 511), np.ones(2 * 100)
    whole = by_position(measured("kl", long, 2))
    floor = by_position(measured("kl", short, 2), whole[-1].high)
    assert {(each.low, each.high) for each in floor} < {(each.low, each.high) for each in whole}


def drawn(rng: np.random.Generator, answers: int, tokens: int, factor: float) -> np.ndarray:
    """KL of answers that differ from one another, ``factor`` times as large in the later half of each."""
    level = rng.lognormal(0.0, 0.5, (answers, 1)) * rng.exponential(0.02, (answers, tokens))
    level[:, tokens // 2 :] *= factor * rng.lognormal(-0.02, 0.2, (answers, 1))
    return level.reshape(-1)


def test_planted_growth_along_answers_is_found() -> None:
    rng = np.random.default_rng(1)
    found = growth(measured("kl", drawn(rng, 16, 400, 2.0), 16, "generated"))
    assert found is not None
    assert found.low is not None
    assert 1.5 < found.low < found.value < 2.6
    assert found.n == 16


def test_where_nothing_grows_the_interval_holds_1_as_often_as_it_says() -> None:
    """300 draws: a share of 95% comes out between 92% and 98% but once in a hundred times."""
    rng = np.random.default_rng(2)
    found = [growth(measured("kl", drawn(rng, 16, 60, 1.0), 16, "generated")) for _ in range(300)]
    held = sum(each.low <= 1 <= each.high for each in found)
    assert 0.92 <= held / 300 <= 0.98


def test_growth_compares_the_halves_of_each_answer() -> None:
    """Answers of unequal length, each compared with itself."""
    kl = Measurement(
        "kl",
        2,
        "nat",
        "lower",
        "paired",
        (1.0, 1.0, 3.0, 3.0, 2.0, 6.0),
        {"protocol": "generated"},
        item_ids=("0:5", "0:6", "0:7", "0:8", "1:2", "1:3"),
        cluster_ids=("0", "0", "0", "0", "1", "1"),
    )
    found = growth(kl)
    assert found is not None
    assert found.value == pytest.approx((3 + 3 + 6) / (1 + 1 + 2))


@pytest.mark.parametrize(("values", "protocol"), [(np.ones(8), "gptq"), (np.zeros(8), "generated")])
def test_there_is_no_growth_of_other_texts_and_of_nothing(values: np.ndarray, protocol: str) -> None:
    assert growth(measured("kl", values, 2, protocol)) is None
