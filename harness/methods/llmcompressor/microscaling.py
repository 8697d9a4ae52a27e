"""llm-compressor's microscaled floats: MXFP8 and MXFP4 (Rouhani et al., arXiv:2310.10537), and NVFP4.

In MX formats 32 columns share a power-of-two scale (8 bits). In NVFP4 (NVIDIA, arXiv:2509.25149) 16 columns share an
E4M3 scale, under one float32 scale per matrix; that of the activations is calibrated.
"""

from __future__ import annotations

from harness.core.format import Activations, Codes
from harness.core.method import Beside, Method, MethodParams, Needs, QuantizeJob
from harness.methods.llmcompressor import driver as llmcompressor
from harness.models.compressed import QUANT_METHOD
from harness.models.scope import TRIED

MX_BLOCK = 32
NV_BLOCK = 16
SCALE_BITS = 8


class MicroscalingParams(MethodParams):
    """``activations`` also quantizes activations to the weights' format, at run time."""

    activations: bool = True


def _quantize(job: QuantizeJob[MicroscalingParams], scheme: str, calibrated: bool = False) -> None:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    groups = llmcompressor.preset(scheme if job.params.activations else f"{scheme}A16")
    modifier = QuantizationModifier(config_groups=groups, ignore=list(job.untouched))
    llmcompressor.quantize(job, [modifier], calibrated)


def _quantize_nvfp4(job: QuantizeJob[MicroscalingParams]) -> None:
    _quantize(job, "NVFP4", calibrated=job.params.activations)


def _quantize_mxfp4(job: QuantizeJob[MicroscalingParams]) -> None:
    _quantize(job, "MXFP4")


def _quantize_mxfp8(job: QuantizeJob[MicroscalingParams]) -> None:
    _quantize(job, "MXFP8")


def _codes(params: MicroscalingParams, bits: int, block: int) -> Codes:
    inputs = Activations("float", bits, "group") if params.activations else None
    return Codes(QUANT_METHOD, "float", bits, "group", block, activations=inputs)


NVFP4 = Method(
    name="llmc-nvfp4",
    version=1,
    summary="llm-compressor NVFP4 weights, optionally activations; dense when run",
    params=MicroscalingParams,
    multimodal=frozenset(),
    packages=llmcompressor.PACKAGES,
    extra=llmcompressor.EXTRA,
    enable=llmcompressor.enable,
    calibrated=lambda params: params.activations,
    quantize=_quantize_nvfp4,
    quantize_parts=llmcompressor.from_disk(_quantize_nvfp4),
    parts_peak=llmcompressor.rounding_peak,
    streams=True,
    quantizes_experts=TRIED,
    kernel="plain",
    needs=lambda params: Needs(input_divisor=NV_BLOCK),
    codes=lambda params: _codes(params, 4, NV_BLOCK),
    bits_per_weight=lambda params, plain_bits, width: 4 + SCALE_BITS / NV_BLOCK,
    beside=lambda params, plain_bits, shape: Beside(
        disk=8.0 if params.activations else 4.0, modules=4.0 if params.activations else 0.0
    ),
    loaded="dense",
)

MXFP4 = Method(
    name="llmc-mxfp4",
    version=1,
    summary="llm-compressor MXFP4 weights, optionally activations; dense when run",
    params=MicroscalingParams,
    multimodal=frozenset(),
    packages=llmcompressor.PACKAGES,
    extra=llmcompressor.EXTRA,
    enable=llmcompressor.enable,
    quantize=_quantize_mxfp4,
    quantize_parts=llmcompressor.from_disk(_quantize_mxfp4),
    parts_peak=llmcompressor.rounding_peak,
    streams=True,
    quantizes_experts=TRIED,
    kernel="plain",
    needs=lambda params: Needs(input_divisor=MX_BLOCK),
    codes=lambda params: _codes(params, 4, MX_BLOCK),
    bits_per_weight=lambda params, plain_bits, width: 4 + SCALE_BITS / MX_BLOCK,
    loaded="dense",
)

MXFP8 = Method(
    name="llmc-mxfp8",
    version=1,
    summary="llm-compressor MXFP8 (E4M3) weights, optionally activations; dense when run",
    params=MicroscalingParams,
    multimodal=frozenset(),
    packages=llmcompressor.PACKAGES,
    extra=llmcompressor.EXTRA,
    enable=llmcompressor.enable,
    quantize=_quantize_mxfp8,
    quantize_parts=llmcompressor.from_disk(_quantize_mxfp8),
    parts_peak=llmcompressor.rounding_peak,
    streams=True,
    quantizes_experts=TRIED,
    kernel="plain",
    needs=lambda params: Needs(input_divisor=MX_BLOCK),
    codes=lambda params: _codes(params, 8, MX_BLOCK),
    bits_per_weight=lambda params, plain_bits, width: 8 + SCALE_BITS / MX_BLOCK,
    loaded="dense",
)
