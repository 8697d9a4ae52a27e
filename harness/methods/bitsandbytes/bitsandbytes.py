"""bitsandbytes: LLM.int8() (Dettmers et al., arXiv:2208.07339), and NF4 (arXiv:2305.14314) and FP4 in blocks of 64.

In 4 bits, block scales (absmax) are float32; double quantization stores them in 8 bits, with one float32 scale per
256 blocks, as in section 3 of the NF4 paper. In 8 bits, weights and activations are int8 per row, and columns with an
activation above ``threshold`` stay in float16. The set of those columns depends on the batch, so the batch layout is
fixed.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from harness.core.method import Beside, Method, MethodParams, Needs, Setting
from harness.models.bitsandbytes import BLOCK, CPU_DIVISOR, take_all_shapes
from harness.models.scope import UNFUSES

NESTED_BLOCK = 256
"""Scales that share a second-level scale under double quantization."""
CODE, NESTED_CODE = 16, 256
"""Entries of the code table for weights, and of the one for scales."""


def four_bits_per_weight(double_quant: bool) -> float:
    """Bits of a 4-bit format: a code and its share of a scale, which is float32, or 8 bits under a float32 scale."""
    return 4 + (8 + 32 / NESTED_BLOCK if double_quant else 32.0) / BLOCK


def tables(double_quant: bool, shape: tuple[int, int]) -> float:
    """Additional bytes of a 4-bit matrix (outputs, inputs).

    They are the float32 code tables, the offset of the scales, and the padding of incomplete blocks.
    """
    weights = math.prod(shape)
    blocks = math.ceil(weights / BLOCK)
    if not double_quant:
        return 4 * (CODE + blocks - weights / BLOCK)
    scales = blocks + 4 * math.ceil(blocks / NESTED_BLOCK) - (1 + 4 / NESTED_BLOCK) * weights / BLOCK
    return 4 * (CODE + NESTED_CODE + 1) + scales


def enable() -> None:
    """Imports the library."""
    take_all_shapes()


class Bnb4Params(MethodParams):
    """``compute_dtype`` is the dtype that weights are unpacked to for a product; ``model`` is the model's own."""

    double_quant: bool = False
    compute_dtype: Literal["model", "float32", "float16", "bfloat16"] = "model"


def _four_bits(code: str, params: Bnb4Params, setting: Setting) -> object:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=code,
        bnb_4bit_use_double_quant=params.double_quant,
        bnb_4bit_compute_dtype=setting.dtype if params.compute_dtype == "model" else params.compute_dtype,
        llm_int8_skip_modules=list(setting.untouched),
    )


def _four_bit(name: str, code: str, summary: str) -> Method[Bnb4Params]:
    """A method of bitsandbytes' 4-bit layers, by the code that its weights take."""
    return Method(
        name=name,
        version=1,
        summary=summary,
        params=Bnb4Params,
        packages=("bitsandbytes",),
        extra="bnb",
        quantizes_experts=UNFUSES,
        enable=enable,
        kernel="packed",
        streams=True,
        unsaved=lambda params, device: None,
        needs=lambda params: Needs(cpu_divisor=CPU_DIVISOR),
        load_config=lambda params, setting: _four_bits(code, params, setting),
        bits_per_weight=lambda params, plain_bits, width: four_bits_per_weight(params.double_quant),
        beside=lambda params, plain_bits, shape: Beside(memory=tables(params.double_quant, shape)),
    )


NF4 = _four_bit("bnb-nf4", "nf4", "bitsandbytes NormalFloat 4: quantiles of a normal distribution, blocks of 64")
FP4 = _four_bit("bnb-fp4", "fp4", "bitsandbytes 4-bit floats, blocks of 64")


class BnbInt8Params(MethodParams):
    """``threshold`` above which an activation is an outlier; 0 keeps no outlier column."""

    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 6.0


def _int8(params: BnbInt8Params, setting: Setting) -> object:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_8bit=True,
        llm_int8_threshold=params.threshold,
        llm_int8_skip_modules=list(setting.untouched),
    )


BNB_INT8 = Method(
    name="bnb-int8",
    version=1,
    summary="bitsandbytes LLM.int8(): int8 weights and activations, outlier columns in float16",
    params=BnbInt8Params,
    packages=("bitsandbytes",),
    extra="bnb",
    quantizes_experts=UNFUSES,
    enable=enable,
    kernel="packed",
    streams=True,
    unsaved=lambda params, device: None,
    load_config=_int8,
    bits_per_weight=lambda params, plain_bits, width: 8 + 32 / width,
    batch_dependent=True,
)
