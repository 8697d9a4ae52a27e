"""llm-compressor's integer weights: round to nearest, and GPTQ (Frantar et al., arXiv:2210.17323).

Activations are not quantized. Codes of every width are packed densely, beside scales in the model's dtype: a 3-bit
code takes 3 bits.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.core.method import GroupSize, Method, MethodParams, Needs, QuantizeJob
from harness.errors import UnsupportedError
from harness.methods.llmcompressor import driver as llmcompressor
from harness.models.scope import TRIED, UNFUSES


class LlmcRtnParams(MethodParams):
    """``group_size`` is the number of input columns that share a scale; ``channel`` means one scale per output row.

    Symmetric codes have no zero point; asymmetric ones have a zero point as wide as a code.
    """

    bits: Literal[8, 4, 3, 2] = 4
    group_size: GroupSize | Literal["channel"] = 128
    symmetric: bool = True


class LlmcGptqParams(MethodParams):
    """``act_order`` quantizes the columns with the largest activations first; the stored format stays the same.

    ``damping`` is the fraction of the Hessian's mean diagonal that is added to its diagonal. The rest is as for
    llmc-rtn.
    """

    bits: Literal[8, 4, 3, 2] = 4
    group_size: GroupSize | Literal["channel"] = 128
    symmetric: bool = True
    act_order: bool = True
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01


def _groups(job: QuantizeJob[Any]) -> dict[str, Any]:
    """All layers with the variant's parameters, and the overridden layers with theirs."""

    def weights(params: Any) -> Any:
        return llmcompressor.integers(params.bits, params.group_size, params.symmetric)

    kind = type(job.params)
    single = {
        name: weights(kind.model_validate({**job.params.model_dump(), **changed}))
        for name, changed in job.overrides.items()
    }
    return llmcompressor.groups(weights(job.params), single=single)


def quantize_rtn(job: QuantizeJob[LlmcRtnParams]) -> None:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    modifier = QuantizationModifier(config_groups=_groups(job), ignore=list(job.untouched))
    llmcompressor.quantize(job, [modifier], calibrated=False)


def quantize_gptq(job: QuantizeJob[LlmcGptqParams]) -> None:
    """Raises UnsupportedError if an override changes the search of the whole run rather than what a layer stores."""
    from llmcompressor.modifiers.gptq import GPTQModifier

    for name, changed in job.overrides.items():
        if whole := sorted({"act_order", "damping"} & changed.keys()):
            raise UnsupportedError(
                f"llm-compressor takes one {' and one '.join(whole)} for all layers, {name} included"
            )
    modifier = GPTQModifier(
        config_groups=_groups(job),
        ignore=list(job.untouched),
        actorder="static" if job.params.act_order else None,
        dampening_frac=job.params.damping,
    )
    llmcompressor.quantize(job, [modifier], calibrated=True)


def _needs(params: LlmcRtnParams | LlmcGptqParams) -> Needs:
    return Needs(input_divisor=params.group_size if isinstance(params.group_size, int) else None)


def _bits(params: LlmcRtnParams | LlmcGptqParams, plain_bits: float, width: int) -> float:
    return llmcompressor.integer_bits(params.bits, params.group_size, params.symmetric, plain_bits, width)


RTN = Method(
    name="llmc-rtn",
    version=1,
    summary="llm-compressor round to nearest in 8, 4, 3 or 2 bits; dense when run",
    params=LlmcRtnParams,
    packages=llmcompressor.PACKAGES,
    extra=llmcompressor.EXTRA,
    enable=llmcompressor.enable,
    quantize=quantize_rtn,
    quantize_parts=llmcompressor.from_disk(quantize_rtn),
    parts_peak=llmcompressor.rounding_peak,
    streams=True,
    quantizes_experts=UNFUSES,
    kernel="plain",
    overrides=True,
    needs=_needs,
    bits_per_weight=_bits,
    codes=llmcompressor.integer_codes,
    beside=llmcompressor.beside_integers,
    loaded="dense",
)

GPTQ = Method(
    name="llmc-gptq",
    version=1,
    summary="llm-compressor GPTQ in 8, 4, 3 or 2 bits; dense when run",
    params=LlmcGptqParams,
    multimodal=frozenset(),
    packages=llmcompressor.PACKAGES,
    extra=llmcompressor.EXTRA,
    enable=llmcompressor.enable,
    calibrated=lambda params: True,
    quantize=quantize_gptq,
    quantize_parts=llmcompressor.from_disk(quantize_gptq),
    parts_peak=llmcompressor.gptq_peak,
    streams=True,
    quantizes_experts=TRIED,
    kernel="plain",
    overrides=True,
    needs=_needs,
    bits_per_weight=_bits,
    codes=llmcompressor.integer_codes,
    beside=llmcompressor.beside_integers,
    loaded="dense",
)
