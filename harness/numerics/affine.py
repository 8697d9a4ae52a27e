"""The affine scheme of integer quantization: ``w ≈ scale · (code − zero_point)``.

After Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
Only Inference" (arXiv:1712.05877), equation 1; symmetric codes are restricted to ±(2^(b−1) − 1)
as in section 2.4 of Gholami et al. (arXiv:2103.13630).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

GroupSize = int | Literal["channel", "tensor"]


@dataclass(frozen=True)
class AffineWeight:
    """A quantized matrix (rows, columns).

    ``codes`` (rows, columns) and ``zero_point`` (one per scale) are uint8 below 2^bits; ``scale`` is
    float16 of shape (rows, groups), (rows, 1) or (1, 1).
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    bits: int


def quantize(weight: torch.Tensor, bits: int, group_size: GroupSize, symmetric: bool) -> AffineWeight:
    """Rounds a matrix to the nearest of 2^bits levels per group of its columns, channel or tensor.

    The range is the minimum and maximum of each group, extended to include zero, so that zero is exact.
    The scale is rounded up to float16 before the codes are chosen, so the codes fit the stored scale. The error
    is at most half a step, or a whole step at one end of the range if an asymmetric zero point is rounded.
    Raises UnsupportedError if group_size does not divide the columns or a scale overflows.
    """
    import torch

    rows = _grouped(weight.detach().to(torch.float32), group_size)
    levels = 2**bits - 1
    low = rows.amin(dim=-1, keepdim=True).clamp(max=0)
    high = rows.amax(dim=-1, keepdim=True).clamp(min=0)
    if symmetric:
        half = 2 ** (bits - 1)
        scale = _to_half(torch.maximum(-low, high) / (half - 1))
        zero_point = torch.full_like(scale, half)
        codes = (torch.round(rows / scale) + half).clamp(1, levels)
    else:
        scale = _to_half((high - low) / levels)
        zero_point = torch.round(-low / scale).clamp(0, levels)
        codes = (torch.round(rows / scale) + zero_point).clamp(0, levels)
    per_scale = (1, 1) if group_size == "tensor" else (weight.shape[0], -1)
    return AffineWeight(
        codes.to(torch.uint8).reshape(weight.shape),
        scale.to(torch.float16).reshape(per_scale),
        zero_point.to(torch.uint8).reshape(per_scale),
        bits,
    )


def dequantize(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``scale · (code − zero_point)``, rounded to dtype once; codes (rows, columns), scales (rows or 1, groups)."""
    import torch

    grouped = codes.reshape(scale.shape[0], scale.shape[1], -1)
    values = grouped.to(torch.float32, copy=True).sub_(zero_point.float().unsqueeze(-1))
    return values.mul_(scale.float().unsqueeze(-1)).reshape(codes.shape).to(dtype)


def bits_per_weight(bits: int, group_size: GroupSize, width: int) -> float:
    """Stored bits per weight of a layer with the given input width: its code and its share of scale and zero point.

    The share is ignored for "tensor", where it is only 24 bits per matrix.
    """
    if group_size == "tensor":
        return float(bits)
    return bits + (16 + bits) / (width if group_size == "channel" else group_size)


def _grouped(weight: torch.Tensor, group_size: GroupSize) -> torch.Tensor:
    """(rows, groups, columns per group); a single row and group for "tensor"."""
    if group_size == "tensor":
        return weight.reshape(1, 1, -1)
    if group_size == "channel":
        return weight.unsqueeze(1)
    if weight.shape[-1] % group_size:
        raise UnsupportedError(f"group_size {group_size} does not divide the input width {weight.shape[-1]}")
    return weight.reshape(weight.shape[0], -1, group_size)


def _to_half(scale: torch.Tensor) -> torch.Tensor:
    """The scale rounded up to float16 and returned in float32; never zero. Rounding up keeps every value in range."""
    import torch

    half = scale.to(torch.float16)
    up = (half.view(torch.int16) + 1).view(torch.float16)  # the next positive float has the next bit pattern
    half = torch.where(half.to(torch.float32) < scale, up, half)
    if not torch.isfinite(half).all():
        raise UnsupportedError("weights too large (or NaN) for float16 scales")
    return half.to(torch.float32).clamp(min=2.0**-24)
