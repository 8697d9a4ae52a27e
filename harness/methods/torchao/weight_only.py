"""torchao's weight-only formats: int8 per channel, and float8 E4M3 or E5M2 per channel."""

from __future__ import annotations

from typing import Literal

from harness.core.method import Method, MethodParams, Setting
from harness.models.scope import UNFUSES


class Int8Params(MethodParams):
    """No parameters: symmetric int8, one scale per output channel."""


class Fp8Params(MethodParams):
    """``format`` of the weights: e4m3 has more precision, e5m2 more range."""

    format: Literal["e4m3", "e5m2"] = "e4m3"


def _int8(params: Int8Params, setting: Setting) -> object:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(setting.untouched))


def _fp8(params: Fp8Params, setting: Setting) -> object:
    import torch
    from torchao.quantization import Float8WeightOnlyConfig
    from transformers import TorchAoConfig

    weight_dtype = torch.float8_e4m3fn if params.format == "e4m3" else torch.float8_e5m2
    return TorchAoConfig(
        Float8WeightOnlyConfig(weight_dtype=weight_dtype), modules_to_not_convert=list(setting.untouched)
    )


INT8 = Method(
    name="int8",
    version=1,
    summary="torchao int8 weights, symmetric per channel; activations untouched",
    params=Int8Params,
    packages=("torchao",),
    extra="torchao",
    quantizes_experts=UNFUSES,
    streams=True,
    unsaved=lambda params, device: None,
    load_config=_int8,
    bits_per_weight=lambda params, plain_bits, width: 8 + (32 + 8) / width,  # a float32 scale, a zero point
)

FP8 = Method(
    name="fp8",
    version=1,
    summary="torchao float8 weights, scaled per channel; activations untouched",
    params=Fp8Params,
    packages=("torchao",),
    extra="torchao",
    quantizes_experts=UNFUSES,
    streams=True,
    unsaved=lambda params, device: None,
    load_config=_fp8,
    bits_per_weight=lambda params, plain_bits, width: 8 + 32 / width,
)
