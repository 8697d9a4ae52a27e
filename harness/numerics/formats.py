"""The number formats of quantized models, in one table.

Sources: IEEE 754-2019 (FP32, FP16); Kalamkar et al., arXiv:1905.12322 (BF16); NVIDIA, "A100 Tensor Core GPU
Architecture" (TF32); Micikevicius et al., arXiv:2209.05433 (FP8); "OCP Microscaling Formats (MX) Specification 1.0"
(FP6, FP4, E8M0 and the MX formats); NVIDIA, "Introducing NVFP4 for Efficient and Accurate Low-Precision Inference"
(NVFP4); Dettmers et al., arXiv:2305.14314, appendix E (NF4); bitsandbytes (its FP4). No array library is imported.
"""

from __future__ import annotations

import re

from harness.errors import refuse_unknown
from harness.numerics.kinds import BlockFormat, Codebook, ExponentFormat, FloatFormat, Format, IntFormat

NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a normal distribution, scaled to ±1, in float32; one of them is exactly zero."""
_BNB_FP4_HALF = (0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25)
BNB_FP4_LEVELS = (*_BNB_FP4_HALF, *(-level for level in _BNB_FP4_HALF))
"""0, 1/192, 8/12, 12/12, 4/12, 6/12, 2/12, 3/12 in float32: E2M1 divided by 12, except for its smallest value."""

FP32 = FloatFormat(name="FP32", summary="IEEE binary32", bits=32, exponent_bits=8, mantissa_bits=23)
TF32 = FloatFormat(
    name="TF32",
    summary="what tensor cores read of FP32; stored in 32 bits",
    bits=19,
    exponent_bits=8,
    mantissa_bits=10,
    padding=13,
)
FP16 = FloatFormat(name="FP16", summary="IEEE binary16", bits=16, exponent_bits=5, mantissa_bits=10)
BF16 = FloatFormat(name="BF16", summary="the upper half of FP32", bits=16, exponent_bits=8, mantissa_bits=7)
FP8_E4M3 = FloatFormat(
    name="FP8 E4M3",
    summary="no infinity, one NaN per sign (torch: float8_e4m3fn)",
    bits=8,
    exponent_bits=4,
    mantissa_bits=3,
    specials="nan",
)
FP8_E5M2 = FloatFormat(
    name="FP8 E5M2", summary="as IEEE would (torch: float8_e5m2)", bits=8, exponent_bits=5, mantissa_bits=2
)
FP6_E3M2 = FloatFormat(
    name="FP6 E3M2", summary="no infinity, no NaN", bits=6, exponent_bits=3, mantissa_bits=2, specials="none"
)
FP6_E2M3 = FloatFormat(
    name="FP6 E2M3", summary="no infinity, no NaN", bits=6, exponent_bits=2, mantissa_bits=3, specials="none"
)
FP4_E2M1 = FloatFormat(
    name="FP4 E2M1", summary="no infinity, no NaN", bits=4, exponent_bits=2, mantissa_bits=1, specials="none"
)
E8M0 = ExponentFormat(name="E8M0", summary="a power of two: the scale of the MX formats", bits=8)
MXFP8 = BlockFormat(
    name="MXFP8",
    summary="E4M3, an E8M0 scale for 32 values",
    bits=8,
    exponent_bits=4,
    mantissa_bits=3,
    specials="nan",
    block=32,
    scale=E8M0,
)
MXFP8_E5M2 = BlockFormat(
    name="MXFP8 E5M2",
    summary="E5M2, an E8M0 scale for 32 values",
    bits=8,
    exponent_bits=5,
    mantissa_bits=2,
    block=32,
    scale=E8M0,
)
MXFP4 = BlockFormat(
    name="MXFP4",
    summary="E2M1, an E8M0 scale for 32 values",
    bits=4,
    exponent_bits=2,
    mantissa_bits=1,
    specials="none",
    block=32,
    scale=E8M0,
)
NVFP4 = BlockFormat(
    name="NVFP4",
    summary="E2M1, an E4M3 scale for 16 values, an FP32 scale for the tensor",
    bits=4,
    exponent_bits=2,
    mantissa_bits=1,
    specials="none",
    block=16,
    scale=FP8_E4M3,
    tensor_scale=FP32,
)
NF4 = Codebook(
    name="NF4",
    summary="quantiles of a normal distribution, an FP32 scale for 64 values",
    bits=4,
    levels=NF4_LEVELS,
    block=64,
    scale=FP32,
)
BNB_FP4 = Codebook(
    name="BNB FP4",
    summary="bitsandbytes' own FP4, an FP32 scale for 64 values; it has two zeros",
    bits=4,
    levels=BNB_FP4_LEVELS,
    block=64,
    scale=FP32,
)
INTEGERS = tuple(
    IntFormat(
        name=f"{'' if signed else 'U'}INT{bits}",
        summary="symmetric: scale · code" if signed else "with a zero point: scale · (code − zero point)",
        bits=bits,
        signed=signed,
    )
    for signed in (True, False)
    for bits in (8, 4, 3, 2)
)
FLOATS = (FP32, TF32, FP16, BF16, FP8_E4M3, FP8_E5M2, FP6_E3M2, FP6_E2M3, FP4_E2M1)
FORMATS: tuple[Format, ...] = (*FLOATS, E8M0, MXFP8, MXFP8_E5M2, MXFP4, NVFP4, NF4, BNB_FP4, *INTEGERS)


def find(name: str) -> Format:
    """The format with that name, ignoring case, spaces, ``-`` and ``_``. Raises UsageError if it is unknown."""
    known = {_plain(form.name): form for form in FORMATS}
    if _plain(name) not in known:
        refuse_unknown("format", name.lower(), [form.name.lower() for form in FORMATS])
    return known[_plain(name)]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
