"""The affine scheme for any range: ``value ≈ scale · (code − zero_point)``, code = round(value / scale) + zero_point.

After Jacob et al., arXiv:1712.05877, equation 1. Symmetric codes are restricted to ±(2^(b−1) − 1), as in section 2.4
of Gholami et al., arXiv:2103.13630. ``affine`` implements the same scheme in torch for packed weights. For the range
of the matrix itself and FP16 scales, both produce the same codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.errors import UnsupportedError
from harness.numerics.formats import FP32
from harness.numerics.kinds import FloatFormat, IntFormat
from harness.numerics.rounding import Array, up_to_float


@dataclass(frozen=True)
class Grid:
    """Equally spaced levels. ``scale`` and ``zero_point`` (whole numbers) broadcast against the values."""

    scale: Array
    zero_point: Array
    lowest: float
    highest: float

    def codes(self, values: Array) -> Array:
        """The nearest code, a whole number in float32; ties go to the even code, values out of range are clipped."""
        values = np.asarray(values, np.float32)
        codes: Array = np.clip(np.rint(values / self.scale) + self.zero_point, self.lowest, self.highest)
        return codes

    def values(self, codes: Array) -> Array:
        """The values that the codes represent."""
        return np.asarray(self.scale * (codes - self.zero_point), np.float32)

    def round(self, values: Array) -> Array:
        """The nearest level of each value."""
        return self.values(self.codes(values))


def over(low: Array, high: Array, form: IntFormat, symmetric: bool, scale_format: FloatFormat = FP32) -> Grid:
    """The grid that covers a range [low, high], extended to include zero so that zero is exact.

    Asymmetric: scale = (high − low) / (2^b − 1), zero_point = round(lowest code − low / scale). Symmetric: scale =
    max(−low, high) / (2^(b−1) − 1), and the zero point is 0, or 2^(b−1) for an unsigned format. The scale is rounded up
    to its format before codes are chosen. Raises UnsupportedError if it is too large for the format.
    """
    low = np.minimum(np.asarray(low, np.float32), np.float32(0))
    high = np.maximum(np.asarray(high, np.float32), np.float32(0))
    half, lowest, highest = 2 ** (form.bits - 1), form.lowest, form.largest
    width, steps = (np.maximum(-low, high), half - 1) if symmetric else (high - low, 2**form.bits - 1)
    exact = np.asarray(width / np.float32(steps), np.float32)
    scale = np.maximum(up_to_float(exact, scale_format), np.float32(scale_format.smallest_subnormal))
    if not np.isfinite(scale).all():
        raise UnsupportedError(f"values too large (or NaN) for {scale_format.name} scales")
    if symmetric:
        zero_point = np.full_like(scale, 0 if form.signed else half)
        return Grid(scale, zero_point, lowest + 1, highest)
    zero_point = np.clip(np.rint(-low / scale) + np.float32(lowest), lowest, highest)
    return Grid(scale, zero_point, lowest, highest)
