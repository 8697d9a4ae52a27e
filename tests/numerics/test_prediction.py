"""First choices and divergences against sorting and float64, over vocabularies of every size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.numerics.prediction import BLOCK, divergences, first_choices, logprobs, mean_divergence, predict

pytestmark = pytest.mark.heavy


@given(
    vocabulary=st.sampled_from([2, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1000, 49_152]),
    steps=st.sampled_from([1, 8, 1000]),
    count=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_first_choices_are_those_of_a_stable_sort(vocabulary: int, steps: int, count: int, seed: int) -> None:
    """With logits on a grid, so that many are equal: then the lower id comes first."""
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed)).mul(steps).round() / steps
    expected = logits.sort(dim=1, descending=True, stable=True).indices[:, :count]
    assert torch.equal(first_choices(predict(logits), count), expected)


@pytest.mark.parametrize("spread", [0.1, 2.0, 8.0])
@pytest.mark.parametrize("damage", [1e-3, 0.1, 3.0])
def test_divergences_lose_nothing_in_float32(spread: float, damage: float) -> None:
    """Flat and peaked predictions, near and far, of logits that lie far from zero and from one another."""
    generator = torch.Generator().manual_seed(0)
    base = spread * torch.randn(16, 50_257, generator=generator) + 20
    other = base + damage * torch.randn(16, 50_257, generator=generator) - 35
    p, q = base.double().log_softmax(-1), other.double().log_softmax(-1)
    forward, backward = divergences(predict(base), predict(other))
    assert forward.tolist() == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), rel=1e-6, abs=1e-6)
    assert backward.tolist() == pytest.approx((q.exp() * (q - p)).sum(-1).tolist(), rel=1e-6, abs=1e-6)
    tokens = torch.arange(16)
    picked = p.gather(1, tokens.unsqueeze(1)).squeeze(1)
    assert logprobs(predict(base), tokens).tolist() == pytest.approx(picked.tolist(), rel=1e-6)


@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize("damage", [1e-5, 1e-4, 1e-3])
def test_divergences_of_predictions_that_hardly_differ_are_exact(spread: float, damage: float) -> None:
    """float32 logits, down to 1e-11 nat; the expectation is numpy's in float64, from the same logits."""
    generator = torch.Generator().manual_seed(2)
    base = spread * torch.randn(8, 49_152, generator=generator)
    other = base + damage * torch.randn(8, 49_152, generator=generator)
    logits = [each.double().numpy() for each in (base, other)]
    p, q = (np.exp(each - each.max(-1, keepdims=True)) for each in logits)
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    forward, backward = divergences(predict(base), predict(other))
    assert forward.tolist() == pytest.approx((p * np.log(p / q)).sum(-1).tolist(), rel=0.05, abs=1e-12)
    assert backward.tolist() == pytest.approx((q * np.log(q / p)).sum(-1).tolist(), rel=0.05, abs=1e-12)


def test_a_prediction_does_not_diverge_from_itself() -> None:
    same = predict(30 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)))
    assert [each.tolist() for each in divergences(same, same)] == [[0.0] * 4] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_logits_are_taken_to_float32(dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))).to(dtype)
    picked = logits.double().log_softmax(-1)[:, 3]
    assert logprobs(predict(logits), torch.full((8,), 3)).tolist() == pytest.approx(picked.tolist(), rel=1e-6)


@pytest.mark.parametrize("damage", [0.0, 1e-6, 0.1])
def test_the_mean_divergence_is_exact_where_predictions_hardly_differ(damage: float) -> None:
    """By numpy in float64; in float32 a divergence of 1e-12 nat would be lost."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(2, 5, 300, generator=generator, dtype=torch.float64)
    other = base + damage * torch.randn(2, 5, 300, generator=generator, dtype=torch.float64)
    p, q = (np.exp(each.numpy()) / np.exp(each.numpy()).sum(-1, keepdims=True) for each in (base, other))
    expected = (p * np.log(p / q)).sum(-1).mean()
    assert mean_divergence(base, other) == pytest.approx(expected, rel=1e-3, abs=1e-16)
    assert (mean_divergence(base, other) > 0) == (damage > 0)


def test_the_mean_divergence_from_no_number_is_none() -> None:
    broken = torch.tensor([[0.0, float("nan")]])
    assert math.isnan(mean_divergence(torch.zeros(1, 2), broken))
