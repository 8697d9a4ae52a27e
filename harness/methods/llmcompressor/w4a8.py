"""llm-compressor's 4-bit integer weights with 8-bit integer activations, rounded to nearest or by GPTQ.

An int4 code is stored in a byte: the format is made for products of two int8 matrices, whose speed it has, but it takes
the size of 8 bits. Activations have one scale per token, computed at run time.
"""

from __future__ import annotations

from typing import Literal

from harness.core.format import Activations, Codes
from harness.core.method import GroupSize, Method, MethodParams, Needs, PartsWork, QuantizeJob
from harness.methods.llmcompressor import driver as llmcompressor
from harness.models.scope import TRIED

BITS, CODE_BITS = 4, 8
"""Of a weight, and of the byte that holds its code."""


class LlmcW4A8Params(MethodParams):
    """``group_size`` is the number of input columns that share a scale; ``channel`` means one scale per output row.

    ``gptq`` rounds by GPTQ (Frantar et al., arXiv:2210.17323), which needs text, instead of to nearest.
    """

    group_size: GroupSize | Literal["channel"] = 128
    gptq: bool = False


def quantize(job: QuantizeJob[LlmcW4A8Params]) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    groups = llmcompressor.groups(
        llmcompressor.integers(BITS, job.params.group_size, symmetric=True),
        QuantizationArgs(num_bits=8, strategy="token", dynamic=True),
    )
    modifier = GPTQModifier if job.params.gptq else QuantizationModifier
    rounding = modifier(config_groups=groups, ignore=list(job.untouched))
    llmcompressor.quantize(job, [rounding], calibrated=job.params.gptq)


def parts_peak(params: LlmcW4A8Params, work: PartsWork) -> float:
    peak = llmcompressor.gptq_peak if params.gptq else llmcompressor.rounding_peak
    return peak(params, work)


def _codes(params: LlmcW4A8Params) -> Codes:
    sized = isinstance(params.group_size, int)
    return Codes(
        "compressed-tensors",
        "int",
        BITS,
        "group" if sized else "channel",
        params.group_size if isinstance(params.group_size, int) else None,
        activations=Activations("int", 8, "token"),
    )


W4A8 = Method(
    name="llmc-w4a8",
    version=1,
    summary="llm-compressor int4 weights, one in a byte, and int8 activations; dense when run",
    params=LlmcW4A8Params,
    multimodal=frozenset(),
    packages=llmcompressor.PACKAGES,
    extra=llmcompressor.EXTRA,
    enable=llmcompressor.enable,
    calibrated=lambda params: params.gptq,
    quantize=quantize,
    quantize_parts=llmcompressor.from_disk(quantize),
    parts_peak=parts_peak,
    streams=True,
    quantizes_experts=TRIED,
    kernel="plain",
    needs=lambda params: Needs(input_divisor=params.group_size if isinstance(params.group_size, int) else None),
    codes=_codes,
    bits_per_weight=lambda params, plain_bits, width: (
        CODE_BITS + plain_bits / (width if params.group_size == "channel" else params.group_size)
    ),
    loaded="dense",
)
