"""Observers of ranges: by hand, against slow independent searches, and what each is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.numerics import grid, observers
from harness.numerics.formats import find
from harness.numerics.kinds import IntFormat
from harness.numerics.observers import OBSERVERS
from harness.numerics.rounding import Array


def integer(name: str) -> IntFormat:
    form = find(name)
    assert isinstance(form, IntFormat)
    return form


INT8, INT4, UINT4 = integer("int8"), integer("int4"), integer("uint4")


def sample(seed: int, outlier: float = 0.0, count: int = 2000) -> Array:
    values = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    values[0] = outlier or values[0]
    return values


def loss(values: Array, limits: observers.Range, form: IntFormat, symmetric: bool) -> float:
    return float(np.square(values - grid.over(*limits, form, symmetric).round(values), dtype=np.float64).sum())


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("symmetric", [False, True])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), shift=st.floats(-3, 3))
def test_a_range_never_goes_beyond_the_values(name: str, symmetric: bool, seed: int, shift: float) -> None:
    values = (sample(seed, count=300) + shift).astype(np.float32).reshape(3, 100)
    low, high = OBSERVERS[name](values, INT4, symmetric)
    assert low.shape == high.shape == (3, 1)
    assert bool((low <= high).all())
    largest = np.abs(values).max(axis=1, keepdims=True)
    assert bool((np.maximum(-low, high) <= largest * (1 + 1e-6)).all())


def test_min_max_by_hand() -> None:
    low, high = observers.min_max(np.array([[-1, 5, 2], [0, 3, 9]], np.float32), INT8, symmetric=False)
    assert low.tolist() == [[-1], [0]]
    assert high.tolist() == [[5], [9]]


def test_percentile_by_hand() -> None:
    """Of 0 … 1000 the percentile p is 10 p; of |−1000 … 1000| too, but for the weight of zero."""
    low, high = observers.percentile(np.arange(1001, dtype=np.float32), UINT4, symmetric=False, percent=99)
    assert (low.item(), high.item()) == pytest.approx((10, 990))
    low, high = observers.percentile(np.arange(-1000, 1001, dtype=np.float32), INT4, symmetric=True, percent=90)
    assert high.item() == -low.item() == pytest.approx(900, abs=1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("outlier", [0.0, 30.0])
def test_mse_finds_what_a_finer_search_finds(symmetric: bool, outlier: float) -> None:
    form, values = (INT4 if symmetric else UINT4), sample(1, outlier)
    found = loss(values, observers.mse(values, form, symmetric), form, symmetric)
    full = observers.min_max(values, form, symmetric)
    bounds = np.linspace(0.01, 1, 2000) * np.abs(values).max()
    finer = min(
        loss(values, (np.maximum(full[0], -bound), np.minimum(full[1], bound)), form, symmetric)
        for bound in bounds.astype(np.float32)
    )
    assert finer <= found <= finer * 1.05
    assert found <= loss(values, full, form, symmetric)


def test_mse_clips_each_row_by_its_own() -> None:
    rows = np.stack([sample(2), sample(3, outlier=50.0)])
    together = observers.mse(rows, INT4, symmetric=True)
    for index in range(2):
        alone = observers.mse(rows[index], INT4, symmetric=True)
        assert (together[0][index], together[1][index]) == (alone[0], alone[1])
    assert together[1][1] < 20, "the outlier of 50 is cut off"


def test_mse_clips_nothing_that_already_lies_on_the_grid() -> None:
    values = np.arange(-7, 8, dtype=np.float32)
    low, high = observers.mse(values, INT4, symmetric=True)
    assert (low.item(), high.item()) == (-7, 7)


def slow_kl(counts: list[int], levels: int) -> int:
    """Migacz' pseudocode, bin by bin: how many bins are kept."""
    best, kept = np.inf, len(counts)
    for size in range(levels, len(counts) + 1):
        p = [float(count) for count in counts[:size]]
        p[-1] += sum(counts[size:])
        q = [0.0] * size
        for level in range(levels):
            inside = [index for index in range(size) if index * levels // size == level]
            filled = [index for index in inside if p[index] > 0]
            for index in filled:
                q[index] = sum(counts[each] for each in inside) / len(filled)
        total_p, total_q = sum(p), sum(q) or 1.0
        divergence = 0.0
        for each, other in zip(p, q, strict=True):
            if each > 0:
                divergence += np.inf if other == 0 else each / total_p * np.log(each / total_p * total_q / other)
        if divergence < best - 1e-12:
            best, kept = divergence, size
    return kept


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kl_is_that_of_the_published_pseudocode(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "BINS", 64)
    values = sample(seed, outlier=12.0)
    counts, edges = np.histogram(np.abs(values), bins=64, range=(0, 12))
    kept = slow_kl(counts.tolist(), 8)
    low, high = observers.kl(values, INT4, symmetric=True)
    assert max(-low.item(), high.item()) == pytest.approx(edges[kept], rel=1e-6)


def test_kl_cuts_an_outlier_off() -> None:
    low, high = observers.kl(sample(0, outlier=20.0, count=20_000), INT8, symmetric=True)
    assert 2 < max(-low.item(), high.item()) < 6


@pytest.mark.parametrize("name", OBSERVERS)
def test_zeros_have_a_range(name: str) -> None:
    low, high = OBSERVERS[name](np.zeros(100, np.float32), INT4, True)
    assert (low.item(), high.item()) == (0, 0)


def test_clipping_pays_at_4_bits_where_there_is_an_outlier() -> None:
    values = sample(5, outlier=40.0)
    losses = {name: loss(values, observe(values, INT4, True), INT4, True) for name, observe in OBSERVERS.items()}
    assert losses["mse"] == min(losses.values())
    assert losses["mse"] < losses["min-max"] / 1.3
