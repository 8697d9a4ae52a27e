"""The affine scheme against its definition and against torch's own quantizer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UnsupportedError
from harness.numerics import affine

pytestmark = pytest.mark.heavy

BITS = st.sampled_from([2, 3, 4, 8])
GRANULARITY = st.sampled_from(["tensor", "channel", 4, 16])


def matrix(seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)) * scale + shift


def restored(weight: affine.AffineWeight) -> torch.Tensor:
    return affine.dequantize(weight.codes, weight.scale, weight.zero_point, torch.float32)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), BITS, GRANULARITY, st.booleans(), st.floats(1e-3, 1e3), st.floats(-2, 2))
def test_the_error_is_at_most_half_a_step(seed, bits, group_size, symmetric, scale, shift) -> None:
    weight = matrix(seed, scale, shift * scale)
    quantized = affine.quantize(weight, bits, group_size, symmetric)
    step = quantized.scale.float().unsqueeze(-1)
    error = (weight - restored(quantized)).abs().reshape(*quantized.scale.shape, -1)
    at_an_end = (quantized.codes == 0) | (quantized.codes == 2**bits - 1)
    steps = 0.5 + 0.5 * at_an_end.reshape(error.shape) * (not symmetric)
    assert bool((error <= steps * step * (1 + 1e-4)).all())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), BITS, GRANULARITY, st.booleans())
def test_quantizing_what_was_dequantized_changes_nothing(seed, bits, group_size, symmetric) -> None:
    once = affine.quantize(matrix(seed), bits, group_size, symmetric)
    again = restored(once)
    codes = torch.round(again.reshape(*once.scale.shape, -1) / once.scale.float().unsqueeze(-1))
    assert torch.equal((codes + once.zero_point.unsqueeze(-1)).to(torch.uint8).reshape(8, 16), once.codes)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), BITS, GRANULARITY, st.booleans(), st.floats(-3, 3))
def test_zero_stays_zero(seed, bits, group_size, symmetric, shift) -> None:
    weight = matrix(seed, shift=shift)
    weight[:, ::3] = 0
    assert bool((restored(affine.quantize(weight, bits, group_size, symmetric))[:, ::3] == 0).all())


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
def test_asymmetric_codes_agree_with_torch() -> None:
    weight = matrix(3)
    quantized = affine.quantize(weight, 8, "channel", symmetric=False)
    theirs = torch.quantize_per_channel(
        weight, quantized.scale[:, 0].double(), quantized.zero_point[:, 0].long(), 0, torch.quint8
    )
    assert torch.equal(theirs.int_repr(), quantized.codes)
    torch.testing.assert_close(theirs.dequantize(), restored(quantized))


def test_a_worked_example() -> None:
    """Minimum -1, maximum 2 in 2 bits: scale 1, zero point 1, codes 0 to 3."""
    quantized = affine.quantize(torch.tensor([[-1.0, 0.0, 0.9, 2.0]]), 2, "channel", symmetric=False)
    assert quantized.scale.item() == 1.0
    assert quantized.zero_point.item() == 1
    assert quantized.codes.tolist() == [[0, 1, 2, 3]]


def test_symmetric_codes_are_restricted() -> None:
    """±(2^(b-1) - 1) levels: the largest magnitude is met exactly on both sides."""
    quantized = affine.quantize(torch.tensor([[-7.0, 7.0, 1.0, 0.0]]), 4, "channel", symmetric=True)
    assert quantized.codes.tolist() == [[1, 15, 9, 8]]
    assert restored(quantized).tolist() == [[-7.0, 7.0, 1.0, 0.0]]


def test_a_row_of_zeros_survives() -> None:
    assert bool((restored(affine.quantize(torch.zeros(2, 8), 4, 4, symmetric=False)) == 0).all())


def test_smaller_groups_never_lose_more() -> None:
    weight = matrix(0)
    losses = [
        float((weight - restored(affine.quantize(weight, 3, group, symmetric=False))).square().mean())
        for group in (4, 16, "tensor")
    ]
    assert losses == sorted(losses)


def test_a_short_dtype_is_rounded_to_once() -> None:
    """The product is taken in float32: a bfloat16 scale would lie up to a quarter step off at 8 bits."""
    q = affine.quantize(matrix(1), 8, 4, symmetric=False)
    expected = affine.dequantize(q.codes, q.scale, q.zero_point, torch.float32).bfloat16()
    assert torch.equal(affine.dequantize(q.codes, q.scale, q.zero_point, torch.bfloat16), expected)


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="does not divide the input width 16"):
        affine.quantize(matrix(0), 4, 5, symmetric=False)


def test_weights_beyond_float16_scales_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="too large"):
        affine.quantize(torch.full((1, 4), 1e9), 4, 4, symmetric=False)
