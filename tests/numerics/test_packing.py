"""Packing loses nothing and takes the room it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.numerics import packing

pytestmark = pytest.mark.heavy


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 9), st.integers(1, 33), st.integers(0, 10**6))
def test_codes_come_back(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = torch.randint(2**bits, (rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = packing.pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packing.packed_bytes(rows * columns, bits)
    assert torch.equal(packing.unpack(packed, bits, (rows, columns)), codes)


@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 1000))
def test_a_multiple_of_eight_codes_takes_exactly_its_bits(bits: int, eighths: int) -> None:
    assert packing.packed_bytes(8 * eighths, bits) == eighths * bits


def test_first_code_in_the_lowest_bits() -> None:
    assert packing.pack(torch.tensor([0x1, 0x2, 0x3, 0x4], dtype=torch.uint8), 4).tolist() == [0x21, 0x43]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_every_byte_is_spread_into_its_codes(width: int) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    codes = [byte >> place & (2**width - 1) for byte in range(256) for place in range(0, 8, width)]
    assert packing._unpack_plane(every, width).tolist() == codes
