"""Rounds a matrix to a format, with the scales that are stored with that format.

Matrices are float32 (rows, columns). If the block size does not divide the columns, a row's last block is shorter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.numerics import grid
from harness.numerics.affine import GroupSize
from harness.numerics.formats import FP16, FP32
from harness.numerics.kinds import BlockFormat, Codebook, FloatFormat, IntFormat
from harness.numerics.observers import Observer, min_max
from harness.numerics.rounding import Array, to_float, to_levels


@dataclass(frozen=True)
class Rounded:
    """The rounded matrix, and the total bits of its scales and zero points."""

    values: Array
    scale_bits: int


def cast(values: Array, form: FloatFormat) -> Rounded:
    """No scale; values that are too large become infinite, as in a cast."""
    return Rounded(to_float(values, form), 0)


def scaled(values: Array, form: FloatFormat, group_size: GroupSize) -> Rounded:
    """One FP32 scale = max |x| / the format's largest value per tensor, row or group of columns.

    Micikevicius et al., arXiv:2209.05433, section 3.
    """
    blocks = _blocks(values, group_size)
    scale = _nonzero(_magnitude(blocks) / np.float32(form.largest))
    rounded = to_float(blocks / scale, form, saturate=True) * scale
    return Rounded(_joined(rounded, values), scale.size * FP32.bits)


def microscaled(values: Array, form: BlockFormat) -> Rounded:
    """A power of two per block, 2^(⌊log2 max |x|⌋ − emax); emax is the exponent of the format's largest value.

    OCP Microscaling Formats (MX) Specification 1.0, section 6.3. Elements beyond the largest value are clamped to it.
    """
    blocks = _blocks(values, form.block)
    exponent = np.frexp(_magnitude(blocks))[1] - 1 - form.largest_exponent
    scale = np.ldexp(np.float32(1), np.clip(exponent, -127, 127))
    rounded = to_float(blocks / scale, form, saturate=True) * scale
    return Rounded(_joined(rounded, values), scale.size * form.scale.bits)


def twice_scaled(values: Array, form: BlockFormat) -> Rounded:
    """NVFP4: s_tensor = max |x| / (448 · 6) in FP32, s_block = max |block| / 6 / s_tensor rounded to E4M3.

    NVIDIA, "Introducing NVFP4". As in torchao, block scales are at least 2^−6 (never subnormal) and values are
    multiplied by reciprocals.
    """
    assert isinstance(form.scale, FloatFormat)
    blocks = _blocks(values, form.block)
    largest, smallest = np.float32(form.scale.largest), np.float32(form.scale.smallest_normal)
    tensor_scale = _nonzero(np.abs(values).max() / np.float32(form.scale.largest * form.largest))
    wanted = _magnitude(blocks) / np.float32(form.largest) / tensor_scale
    scale = to_float(np.clip(wanted, smallest, largest), form.scale)
    rounded = to_float(blocks * (np.float32(1) / tensor_scale / scale), form, saturate=True)
    return Rounded(_joined(rounded * (tensor_scale * scale), values), scale.size * form.scale.bits + FP32.bits)


def coded(values: Array, codebook: Codebook) -> Rounded:
    """The nearest level of x / max |block|, times max |block|; blocks may span rows, as in bitsandbytes.

    Dettmers et al., arXiv:2305.14314, section 3, without double quantization of the scales.
    """
    blocks = _blocks(values.reshape(1, -1), codebook.block)
    scale = _magnitude(blocks)
    levels = to_levels(np.clip(blocks * (np.float32(1) / _nonzero(scale)), -1, 1), codebook)
    flat = _joined(levels * scale, values.reshape(1, -1))
    return Rounded(flat.reshape(values.shape), scale.size * codebook.scale.bits)


def affine(values: Array, form: IntFormat, group_size: GroupSize, observer: Observer = min_max) -> Rounded:
    """Symmetric if the format is signed, else with a zero point of its bits; FP16 scales, as ``rtn`` stores them."""
    blocks = _blocks(values, group_size)
    low, high = observer(blocks, form, form.signed)
    levels = grid.over(low, high, form, form.signed, FP16)
    bits = FP16.bits + (0 if form.signed else form.bits)
    return Rounded(_joined(levels.round(blocks), values), levels.scale.size * bits)


def _blocks(values: Array, group_size: GroupSize) -> Array:
    """(rows, blocks, values per block); a single row for "tensor". The last block is padded with zeros."""
    if group_size == "tensor":
        return values.reshape(1, 1, -1)
    if group_size == "channel":
        return values[:, None, :]
    rows, columns = values.shape
    return np.pad(values, ((0, 0), (0, -columns % group_size))).reshape(rows, -1, group_size)


def _joined(blocks: Array, like: Array) -> Array:
    rows, columns = like.shape
    return blocks.reshape(rows, -1)[:, :columns]


def _magnitude(blocks: Array) -> Array:
    largest: Array = np.abs(blocks).max(axis=-1, keepdims=True)
    return largest


def _nonzero(scale: Array) -> Array:
    """Replaces a scale of zero by one, for blocks of zeros."""
    return np.where(scale > 0, scale, np.float32(1))
