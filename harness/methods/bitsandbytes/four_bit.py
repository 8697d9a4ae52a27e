"""bitsandbytes' 4-bit formats: NF4 (Dettmers et al., arXiv:2305.14314) and FP4, in blocks of 64.

Block scales (absmax) are float32; double quantization stores them in 8 bits with float32 scales of
256 blocks, as in section 3 of the paper.
"""

from __future__ import annotations

from typing import Literal

from harness.core.method import Beside, Method, MethodParams, Setting
from harness.methods.bitsandbytes import storage as bnb


class Bnb4Params(MethodParams):
    """``compute_dtype`` is what weights are unpacked to for a product; ``model`` is the model's own."""

    double_quant: bool = False
    compute_dtype: Literal["model", "float32", "float16", "bfloat16"] = "model"


def enable() -> None:
    import bitsandbytes  # noqa: F401


def _config(code: str, params: Bnb4Params, setting: Setting) -> object:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=code,
        bnb_4bit_use_double_quant=params.double_quant,
        bnb_4bit_compute_dtype=setting.dtype if params.compute_dtype == "model" else params.compute_dtype,
        llm_int8_skip_modules=list(setting.untouched),
    )


NF4 = Method(
    name="bnb-nf4",
    version=1,
    summary="bitsandbytes NormalFloat 4: quantiles of a normal distribution, blocks of 64",
    params=Bnb4Params,
    packages=("bitsandbytes",),
    extra="bnb",
    enable=enable,
    kernel="packed",
    load_config=lambda params, setting: _config("nf4", params, setting),
    bits_per_weight=lambda params, plain_bits, width: bnb.bits_per_weight(params.double_quant),
    beside=lambda params, plain_bits, shape: Beside(memory=bnb.tables(params.double_quant, shape)),
)

FP4 = Method(
    name="bnb-fp4",
    version=1,
    summary="bitsandbytes 4-bit floats, blocks of 64",
    params=Bnb4Params,
    packages=("bitsandbytes",),
    extra="bnb",
    enable=enable,
    kernel="packed",
    load_config=lambda params, setting: _config("fp4", params, setting),
    bits_per_weight=lambda params, plain_bits, width: bnb.bits_per_weight(params.double_quant),
    beside=lambda params, plain_bits, shape: Beside(memory=bnb.tables(params.double_quant, shape)),
)
