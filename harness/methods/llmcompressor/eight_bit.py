"""llm-compressor's 8-bit weights and activations: float8 E4M3 (Micikevicius et al., arXiv:2209.05433) and int8.

int8 may be preceded by smoothing (SmoothQuant, Xiao et al., arXiv:2211.10438): the range of activation channels moves
into the following weights, which leaves the unquantized model unchanged.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.core.format import Activations, Codes
from harness.core.method import Beside, GroupSize, Method, MethodParams, Needs, QuantizeJob
from harness.methods.llmcompressor import driver as llmcompressor
from harness.models.compressed import QUANT_METHOD
from harness.models.scope import TRIED


class LlmcFp8Params(MethodParams):
    """``scheme`` sets what shares a scale in the weights and in the activations.

    ``dynamic``: each output channel; each token, at run time. ``static``: the whole matrix; the whole activation
    matrix, from calibration. ``block``: a square of ``block_size`` rows and columns; ``block_size`` columns of a token,
    at run time. ``weight_only``: each output channel; activations are not quantized. Only ``block`` uses
    ``block_size``.
    """

    scheme: Literal["dynamic", "static", "block", "weight_only"] = "dynamic"
    block_size: GroupSize = 128


class LlmcInt8Params(MethodParams):
    """Weights have one scale per output channel. ``activations`` have one per token, computed at run time
    (``dynamic``), or one per layer, from calibration (``static``).

    ``smoothquant`` first applies SmoothQuant with ``strength``: 0 leaves the range in the activations, 1 moves it to
    the weights.
    """

    activations: Literal["dynamic", "static"] = "dynamic"
    smoothquant: bool = False
    strength: Annotated[float, Field(ge=0, le=1)] = 0.5


def _fp8_groups(params: LlmcFp8Params) -> dict[str, Any]:
    from compressed_tensors.quantization import QuantizationArgs

    if params.scheme in ("dynamic", "static"):
        return llmcompressor.preset("FP8_DYNAMIC" if params.scheme == "dynamic" else "FP8")
    if params.scheme == "weight_only":
        return llmcompressor.groups(QuantizationArgs(num_bits=8, type="float", strategy="channel"))
    size = params.block_size
    return llmcompressor.groups(
        QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=[size, size]),
        QuantizationArgs(num_bits=8, type="float", strategy="group", group_size=size, dynamic=True),
    )


def quantize_fp8(job: QuantizeJob[LlmcFp8Params]) -> None:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    modifier = QuantizationModifier(config_groups=_fp8_groups(job.params), ignore=list(job.untouched))
    llmcompressor.quantize(job, [modifier], calibrated=job.params.scheme == "static")


def quantize_int8(job: QuantizeJob[LlmcInt8Params]) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    params = job.params
    modifiers: list[Any] = [SmoothQuantModifier(smoothing_strength=params.strength)] if params.smoothquant else []
    if params.activations == "dynamic":
        groups = llmcompressor.preset("W8A8")
    else:
        groups = llmcompressor.groups(
            QuantizationArgs(num_bits=8, strategy="channel"),
            QuantizationArgs(num_bits=8, strategy="tensor", observer="static_minmax"),
        )
    modifiers.append(QuantizationModifier(config_groups=groups, ignore=list(job.untouched)))
    llmcompressor.quantize(job, modifiers, calibrated=_int8_calibrated(params))


def _int8_calibrated(params: LlmcInt8Params) -> bool:
    return params.smoothquant or params.activations == "static"


def _fp8_codes(params: LlmcFp8Params) -> Codes:
    group: Any = {"static": "tensor", "block": "block"}.get(params.scheme, "channel")
    size = params.block_size if params.scheme == "block" else None
    inputs: dict[str, Activations | None] = {
        "dynamic": Activations("float", 8, "token"),
        "static": Activations("float", 8, "tensor", dynamic=False),
        "block": Activations("float", 8, "group"),
        "weight_only": None,
    }
    return Codes(QUANT_METHOD, "float", 8, group, size, activations=inputs[params.scheme])


def _int8_codes(params: LlmcInt8Params) -> Codes:
    dynamic = params.activations == "dynamic"
    inputs = Activations("int", 8, "token" if dynamic else "tensor", dynamic)
    return Codes(QUANT_METHOD, "int", 8, "channel", activations=inputs)


def _fp8_bits(params: LlmcFp8Params, plain_bits: float, width: int) -> float:
    scales = {"static": 0.0, "block": plain_bits / params.block_size**2}
    return 8 + scales.get(params.scheme, plain_bits / width)


def _fp8_beside(params: LlmcFp8Params, plain_bits: float, shape: tuple[int, int]) -> Beside:
    """The scales of a matrix and of its inputs, including those of partial blocks at the matrix's edges."""
    scale = plain_bits / 8
    if params.scheme == "static":
        return Beside(disk=2 * scale, modules=scale)
    if params.scheme == "block":
        size = params.block_size
        return Beside(
            disk=scale * (math.ceil(shape[0] / size) * math.ceil(shape[1] / size) - math.prod(shape) / size**2)
        )
    return Beside()


def _int8_beside(params: LlmcInt8Params, plain_bits: float, shape: tuple[int, int]) -> Beside:
    """The scale of the inputs, if it comes from calibration."""
    scale = plain_bits / 8 if params.activations == "static" else 0
    return Beside(disk=scale, modules=scale)


FP8 = Method(
    name="llmc-fp8",
    version=1,
    summary="llm-compressor float8 E4M3 weights and activations (or weights alone); dense when run",
    params=LlmcFp8Params,
    multimodal=frozenset(),
    packages=llmcompressor.PACKAGES,
    extra=llmcompressor.EXTRA,
    enable=llmcompressor.enable,
    calibrated=lambda params: params.scheme == "static",
    quantize=quantize_fp8,
    quantize_parts=llmcompressor.from_disk(quantize_fp8),
    parts_peak=llmcompressor.rounding_peak,
    streams=True,
    quantizes_experts=TRIED | {"olmoe", "qwen2_moe"},
    kernel="plain",
    needs=lambda params: Needs(input_divisor=params.block_size if params.scheme == "block" else None),
    codes=_fp8_codes,
    bits_per_weight=_fp8_bits,
    beside=_fp8_beside,
    loaded="dense",
)

INT8 = Method(
    name="llmc-int8",
    version=1,
    summary="llm-compressor int8 weights and activations, with or without SmoothQuant; dense when run",
    params=LlmcInt8Params,
    multimodal=frozenset(),
    packages=llmcompressor.PACKAGES,
    extra=llmcompressor.EXTRA,
    enable=llmcompressor.enable,
    calibrated=_int8_calibrated,
    quantize=quantize_int8,
    quantize_parts=llmcompressor.from_disk(quantize_int8),
    parts_peak=llmcompressor.rounding_peak,
    streams=True,
    quantizes_experts=TRIED,
    kernel="plain",
    codes=_int8_codes,
    bits_per_weight=lambda params, plain_bits, width: 8 + plain_bits / width,
    beside=_int8_beside,
    loaded="dense",
)
