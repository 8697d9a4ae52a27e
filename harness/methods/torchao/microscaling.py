"""torchao's microscaled floats: NVFP4, MXFP8 and MXFP4.

The MX formats have a power-of-two scale per block of 32 (Rouhani et al., arXiv:2310.10537; OCP Microscaling Formats
1.0). NVFP4 has a float8 E4M3 scale per block of 16 and a float32 one per matrix (NVIDIA, arXiv:2509.25149). MX also
quantizes activations, in blocks within a token; NVFP4 is weight-only here. Below compute capability 10.0, and on CPUs,
both operands of an MX product are dequantized first: this gives the format's numbers, not its speed.
"""

from __future__ import annotations

from math import ceil
from typing import Literal

from harness.core.method import Beside, Method, MethodParams, Needs, Setting
from harness.methods.torchao import driver as torchao
from harness.models.scope import UNFUSES

MX_BLOCK, NVFP4_BLOCK = 32, 16
TILE_ROWS, SCALE_TILE = 128, 4
"""Scales are stored in padded tiles of this many rows and blocks."""


class Nvfp4Params(MethodParams):
    """No parameters: E2M1 in blocks of 16."""


class MxParams(MethodParams):
    """No parameters: blocks of 32, scales rounded up so that no element overflows."""


def _nvfp4(params: Nvfp4Params, setting: Setting) -> object:
    from torchao.prototype.mx_formats import NVFP4WeightOnlyConfig

    return torchao.wrap(NVFP4WeightOnlyConfig(), setting)


def _mx(element: Literal["float8_e4m3fn", "float4_e2m1fn_x2"], setting: Setting) -> object:
    import torch
    from torchao.prototype.mx_formats import MXDynamicActivationMXWeightConfig
    from torchao.quantization.quantize_.common import KernelPreference

    dtype = getattr(torch, element)
    kernel = KernelPreference.AUTO if torchao.is_blackwell(setting.device) else KernelPreference.EMULATED
    config = MXDynamicActivationMXWeightConfig(activation_dtype=dtype, weight_dtype=dtype, kernel_preference=kernel)
    return torchao.wrap(config, setting)


def _bits(element: int, block: int, width: int) -> float:
    """An element's bits and its share of its row's one-byte scales, padded to whole tiles."""
    return element + 8 * SCALE_TILE * ceil(width / (block * SCALE_TILE)) / width


def _padding(shape: tuple[int, int], block: int, whole: int = 0) -> Beside:
    """The one-byte scales of the rows that pad the last tile, and ``whole``, bytes of the matrix's own scale."""
    rows, width = shape
    return Beside(memory=-rows % TILE_ROWS * SCALE_TILE * ceil(width / (block * SCALE_TILE)) + whole)


NVFP4 = Method(
    name="torchao-nvfp4",
    version=1,
    summary="torchao NVFP4 weights: 4-bit floats, float8 scales of blocks of 16; activations untouched",
    params=Nvfp4Params,
    packages=("torchao",),
    extra="torchao",
    quantizes_experts=UNFUSES,
    kernel="dequantize",
    needs=lambda params: Needs(input_divisor=NVFP4_BLOCK, output_divisor=NVFP4_BLOCK),
    streams=True,
    unsaved=lambda params, device: None,
    load_config=_nvfp4,
    bits_per_weight=lambda params, plain_bits, width: _bits(4, NVFP4_BLOCK, width),
    beside=lambda params, plain_bits, shape: _padding(shape, NVFP4_BLOCK, whole=4),
)

MXFP8 = Method(
    name="torchao-mxfp8",
    version=1,
    summary="torchao MXFP8: E4M3 weights and activations, power-of-two scales of blocks of 32",
    params=MxParams,
    packages=("torchao",),
    extra="torchao",
    quantizes_experts=UNFUSES,
    kernel="packed",
    needs=lambda params: Needs(input_divisor=MX_BLOCK),
    streams=True,
    unsaved=lambda params, device: None,
    load_config=lambda params, setting: _mx("float8_e4m3fn", setting),
    bits_per_weight=lambda params, plain_bits, width: _bits(8, MX_BLOCK, width),
    beside=lambda params, plain_bits, shape: _padding(shape, MX_BLOCK),
    run_dtype=lambda params, dtype: "bfloat16",  # torchao rejects any other
)

MXFP4 = Method(
    name="torchao-mxfp4",
    version=1,
    summary="torchao MXFP4: E2M1 weights and activations, power-of-two scales of blocks of 32",
    params=MxParams,
    packages=("torchao",),
    extra="torchao",
    quantizes_experts=UNFUSES,
    kernel="packed",
    needs=lambda params: Needs(input_divisor=MX_BLOCK),
    streams=True,
    unsaved=lambda params, device: None,
    load_config=lambda params, setting: _mx("float4_e2m1fn_x2", setting),
    bits_per_weight=lambda params, plain_bits, width: _bits(4, MX_BLOCK, width),
    beside=lambda params, plain_bits, shape: _padding(shape, MX_BLOCK),
    run_dtype=lambda params, dtype: "bfloat16",
)
