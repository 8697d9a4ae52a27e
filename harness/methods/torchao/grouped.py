"""torchao's integers with a scale per group of input columns: any width unpacked, and 4 bits packed.

``torchao-intx`` stores one byte per weight whatever the width: fewer bits cost quality and save no memory. It shows the
arithmetic of a width, not its size. ``torchao-int4`` packs two weights into a byte and multiplies the packed codes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.core.method import GroupSize, Method, MethodParams, Needs, Setting
from harness.errors import UnsupportedError
from harness.methods.torchao import driver as torchao
from harness.models.scope import UNFUSES

INT4_ROWS = 16
"""The CPU kernel of int4 requires output widths that are a multiple of this."""
TILE_ROWS, TILE_COLUMNS = 8, 1024
"""On a GPU torchao pads int4 matrices to multiples of these (``Int4TilePackedTo4dTensor.from_hp``)."""
AMPERE = (8, 0)
"""The lowest CUDA compute capability of that layout's kernel."""


class IntxParams(MethodParams):
    """``bits`` of a weight, each stored in one byte; ``group_size``: input columns that share a scale."""

    bits: Annotated[int, Field(ge=1, le=8)] = 4
    group_size: GroupSize = 32


class Int4Params(MethodParams):
    """``group_size`` is the number of input columns that share a scale and a zero point; 256 runs only on CUDA."""

    group_size: Literal[32, 64, 128, 256] = 64


def _intx(params: IntxParams, setting: Setting) -> object:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    width = getattr(torch, f"int{params.bits}")
    return torchao.wrap(IntxWeightOnlyConfig(weight_dtype=width, granularity=PerGroup(params.group_size)), setting)


def _int4(params: Int4Params, setting: Setting) -> object:
    """On a GPU, weights are packed in tiles for ATen's own kernel; torchao's default layout needs the package mslk.

    Raises UnsupportedError for a dtype that this kernel does not multiply.
    """
    if setting.device == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return torchao.wrap(PrototypeInt4WeightOnlyConfig(group_size=params.group_size), setting)
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    if setting.dtype != "bfloat16":
        raise UnsupportedError(f"torchao's int4 on a GPU multiplies bfloat16 only, not {setting.dtype}")
    tiles = Int4PackingFormat.TILE_PACKED_TO_4D
    return torchao.wrap(Int4WeightOnlyConfig(group_size=params.group_size, int4_packing_format=tiles), setting)


def _unsaved_int4(params: Int4Params, device: str) -> str | None:
    """torchao names the classes that it saves (``ALLOWED_TENSORS_SUBCLASSES``); a GPU's is one of them."""
    if device == "cpu":
        return "torchao does not save the int4 weights that it packs for a CPU (Int4OpaqueTensor)"
    return "int4 weights that torchao packs for a GPU were not seen to reload as they were saved"


def _padded(device: str, shape: tuple[int, int]) -> tuple[int, int]:
    if device == "cpu":
        return shape
    rows, columns = shape
    return -(-rows // TILE_ROWS) * TILE_ROWS, -(-columns // TILE_COLUMNS) * TILE_COLUMNS


INTX = Method(
    name="torchao-intx",
    version=1,
    summary="torchao integers of 1 to 8 bits per group, symmetric; one byte per weight at any width",
    params=IntxParams,
    packages=("torchao",),
    extra="torchao",
    quantizes_experts=UNFUSES,
    kernel="dequantize",
    needs=lambda params: Needs(input_divisor=params.group_size),
    streams=True,
    unsaved=lambda params, device: None,
    load_config=_intx,
    bits_per_weight=lambda params, plain_bits, width: 8 + (plain_bits + 8) / params.group_size,
)

INT4 = Method(
    name="torchao-int4",
    version=1,
    summary="torchao int4 weights per group, asymmetric, multiplied in packed form",
    params=Int4Params,
    packages=("torchao",),
    extra="torchao",
    quantizes_experts=UNFUSES,
    kernel="packed",
    needs=lambda params: Needs(
        device="cuda" if params.group_size == 256 else None,
        input_divisor=params.group_size,
        output_divisor=INT4_ROWS,
        capability=AMPERE,
        gpu_dtypes=("bfloat16",),
    ),
    streams=True,
    unsaved=_unsaved_int4,
    load_config=_int4,
    bits_per_weight=lambda params, plain_bits, width: 4 + 2 * plain_bits / params.group_size,
    padded=_padded,
)
