"""torchao's formats that also quantize activations, with a scale per token computed at run time.

W8A8 in int8, and float8 E4M3 on GPUs that multiply it (Micikevicius et al., arXiv:2209.05433). A token's scale depends
only on that token, so the rest of the batch does not change its result.
"""

from __future__ import annotations

from harness.core.method import Method, MethodParams, Needs, Setting
from harness.methods.torchao import driver as torchao
from harness.models.scope import UNFUSES

INT8_BLOCK = 8
"""On a GPU, torchao multiplies a matrix on the CPU unless this divides both its sides (``safe_int_mm``)."""
FP8_BLOCK = 16
"""torchao silently leaves a matrix unquantized unless this divides both its sides."""


class Int8DynamicParams(MethodParams):
    """No parameters: symmetric int8, a scale per output channel of the weights and per token of the activations."""


class Fp8DynamicParams(MethodParams):
    """No parameters: E4M3, a scale per output channel of the weights and per token of the activations."""


def _int8(params: Int8DynamicParams, setting: Setting) -> object:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    # If products saturate, torchao can use 7 of the 8 bits.
    return torchao.wrap(Int8DynamicActivationInt8WeightConfig(reduce_range=_saturates(setting.device)), setting)


def _saturates(device: str) -> bool:
    """Whether int8 products saturate at 16 bits, as oneDNN's do without VNNI.

    This is measured, because torchao's should_reduce_range looks at the processor, and oneDNN may use fewer of its
    instructions (ONEDNN_MAX_CPU_ISA).
    """
    import torch

    if device != "cpu":
        return False
    largest = torch.full((32, 32), 127, dtype=torch.int8)
    return not torch.equal(torch._int_mm(largest, largest), largest.int() @ largest.int())


def _fp8(params: Fp8DynamicParams, setting: Setting) -> object:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    return torchao.wrap(Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), setting)


INT8_DYNAMIC = Method(
    name="torchao-int8-dynamic",
    version=1,
    summary="torchao W8A8: int8 weights per channel, int8 activations per token, multiplied as integers",
    params=Int8DynamicParams,
    packages=("torchao",),
    extra="torchao",
    quantizes_experts=UNFUSES,
    kernel="packed",
    needs=lambda params: Needs(gpu_divisor=INT8_BLOCK),
    streams=True,
    unsaved=lambda params, device: None,
    load_config=_int8,
    bits_per_weight=lambda params, plain_bits, width: 8 + (32 + 8) / width,  # a float32 scale, a zero point
)

FP8_DYNAMIC = Method(
    name="torchao-fp8-dynamic",
    version=1,
    summary="torchao W8A8 in float8 E4M3: weights per channel, activations per token, on GPUs that multiply float8",
    params=Fp8DynamicParams,
    packages=("torchao",),
    extra="torchao",
    quantizes_experts=UNFUSES,
    kernel="packed",
    needs=lambda params: Needs(device="cuda", capability=(8, 9), input_divisor=FP8_BLOCK, output_divisor=FP8_BLOCK),
    load_config=_fp8,
    bits_per_weight=lambda params, plain_bits, width: 8 + 32 / width,
    run_dtype=lambda params, dtype: "bfloat16",  # torchao takes no other dtype with per-row scales
)
