"""llm-compressor's AWQ (Lin et al., arXiv:2306.00978): scales salient channels up before weights are rounded.

For each group of layers with a common input, the scales are found by a grid search that runs the block over all
calibration text at every point. The inverse scales move into the preceding layer, so the result is equivalent.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.core.method import GroupSize, Method, MethodParams, Needs, QuantizeJob
from harness.methods.llmcompressor import driver as llmcompressor
from harness.models.scope import LATENT, TRIED


class LlmcAwqParams(MethodParams):
    """``group_size`` is the number of input columns that share a scale; ``channel`` means one scale per output row.

    ``duo_scaling`` computes the scales from the magnitudes of weights as well as activations. ``grid`` is the number of
    points of the search; its time is proportional to that.
    """

    bits: Literal[8, 4, 3, 2] = 4
    group_size: GroupSize | Literal["channel"] = 128
    symmetric: bool = False
    duo_scaling: bool = True
    grid: Annotated[int, Field(ge=3, le=1000)] = 20


def quantize(job: QuantizeJob[LlmcAwqParams]) -> None:
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    params = job.params
    groups = llmcompressor.groups(llmcompressor.integers(params.bits, params.group_size, params.symmetric))
    scale = AWQModifier(duo_scaling=params.duo_scaling, n_grid=params.grid)
    round_ = QuantizationModifier(config_groups=groups, ignore=list(job.untouched))
    llmcompressor.quantize(job, [scale, round_], calibrated=True)


AWQ = Method(
    name="llmc-awq",
    version=1,
    summary="llm-compressor AWQ in 8, 4, 3 or 2 bits; dense when run",
    params=LlmcAwqParams,
    multimodal=frozenset(),
    packages=llmcompressor.PACKAGES,
    extra=llmcompressor.EXTRA,
    enable=llmcompressor.enable,
    calibrated=lambda params: True,
    passes=lambda params, samples: 30.0,  # it tries 20 scales for each layer
    quantize=quantize,
    quantize_parts=llmcompressor.from_disk(quantize),
    parts_peak=llmcompressor.awq_peak,
    streams=True,
    quantizes_experts=TRIED - LATENT,  # it fails on the widths of latent attention
    kernel="plain",
    needs=lambda params: Needs(input_divisor=params.group_size if isinstance(params.group_size, int) else None),
    bits_per_weight=lambda params, plain_bits, width: llmcompressor.integer_bits(
        params.bits, params.group_size, params.symmetric, plain_bits, width
    ),
    codes=llmcompressor.integer_codes,
    beside=llmcompressor.beside_integers,
    loaded="dense",
)
