"""Rounds arrays to values that a format can represent; the result is in float32.

No scale is applied here; see ``scaling``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from harness.numerics.kinds import Codebook, FloatFormat

Array = npt.NDArray[np.float32]


def to_float(values: Array, form: FloatFormat, saturate: bool = False) -> Array:
    """The nearest value of a float format; ties go to the even mantissa (IEEE 754-2019, section 4.3.1).

    float32 in, float32 out, any shape. Beyond the largest value: infinity if the format has it, else NaN if it has
    that, else the largest value. With ``saturate`` it is always the largest, for infinities too. NaN stays NaN.
    """
    rounded = _on_grid(values, form, np.rint)
    beyond = np.abs(rounded) > form.largest
    if saturate or form.specials == "none":
        limit = np.float32(form.largest)
    else:
        limit = np.float32(np.inf if form.infinities else np.nan)
    return np.where(beyond, np.copysign(limit, rounded), rounded)


def up_to_float(values: Array, form: FloatFormat) -> Array:
    """The smallest value of a float format that is not below the given one; infinity beyond the largest."""
    rounded = _on_grid(values, form, np.ceil)
    return np.where(rounded > form.largest, np.float32(np.inf), rounded)


def to_levels(values: Array, codebook: Codebook) -> Array:
    """The nearest level of a codebook; ties go to the lower one, as in bitsandbytes."""
    levels = np.unique(np.asarray(codebook.levels, np.float32))
    middles = (levels[:-1] + levels[1:]) / np.float32(2)
    return levels[np.searchsorted(middles, np.asarray(values, np.float32))]


def _on_grid(values: Array, form: FloatFormat, whole: Any) -> Array:
    """Values rounded to multiples of the format's step at their magnitude, as if its exponent had no upper limit.

    All arithmetic is exact in float32: the step is a power of two, and the quotient is below 2^24.
    """
    values = np.asarray(values, np.float32)
    exponent = (values.view(np.uint32) & np.uint32(0x7F80_0000)).view(np.float32)  # 2^⌊log2|v|⌋; 0 if subnormal
    finite = np.isfinite(values)
    smallest = np.float32(form.smallest_normal)
    step = np.maximum(np.where(finite, exponent, smallest), smallest) * np.float32(2.0**-form.mantissa_bits)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(finite, whole(values / step) * step, values)
