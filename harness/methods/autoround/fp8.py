"""auto-round's static float8 (E4M3; Micikevicius et al., arXiv:2209.05433): weights per channel, activations per layer.

The reloaded checkpoint does not compute what the library's model in memory computes. The model in memory ignores the
calibrated activation range and uses each batch's range instead (``WrapperWALayer`` passes the range as ``act_max``,
but the data type's function expects ``tensor_max``); the reloaded one uses the calibrated range. In addition, reloaded
layers hold codes and scales in bfloat16 and multiply them there. With both undone, memory and reload agree bit for bit
(tested with 0.15.1); without that, a reload check correctly finds a difference of several percent.
"""

from __future__ import annotations

from harness.core.format import Activations, Codes
from harness.core.method import Beside, Method, MethodParams, Needs, QuantizeJob
from harness.methods.autoround import driver as autoround
from harness.models.auto_round import QUANT_METHOD


class AutoRoundFp8Params(MethodParams):
    """No parameters: float8 E4M3 weights with a scale per output channel, activations with one per layer."""


def quantize(job: QuantizeJob[AutoRoundFp8Params]) -> None:
    autoround.quantize(job, _rounding())


def quantize_parts(job: QuantizeJob[AutoRoundFp8Params]) -> None:
    autoround.quantize_parts(job, _rounding())


def _rounding() -> autoround.Rounding:
    from auto_round.algorithms.quantization.rtn.config import RTNConfig

    return autoround.Rounding("FP8_STATIC", RTNConfig())


def _beside(params: AutoRoundFp8Params, plain_bits: float, shape: tuple[int, int]) -> Beside:
    """The scale of the inputs. In memory, codes and scales are bfloat16: one more byte per code, 2 per scale."""
    outputs, inputs = shape
    return Beside(memory=outputs * inputs - outputs * (plain_bits - 16) / 8 + 2, disk=4.0)


AUTOROUND_FP8 = Method(
    name="autoround-fp8",
    version=1,
    summary="auto-round's float8 weights and activations, ranges calibrated; its reload differs from memory",
    leaves_experts_because="what it reloads differs by several percent from what it saved, in all layers",
    params=AutoRoundFp8Params,
    multimodal=frozenset(),
    packages=autoround.PACKAGES,
    extra=autoround.EXTRA,
    quantize=quantize,
    quantize_parts=quantize_parts,
    refuses_parts=autoround.refuses_parts,
    streams=True,
    enable=autoround.enable,
    calibrated=lambda params: True,
    needs=lambda params: Needs(input_divisor=autoround.WORD, output_divisor=autoround.WORD),
    kernel="dequantize",
    codes=lambda params: Codes(
        QUANT_METHOD,
        "float",
        8,
        "channel",
        activations=Activations("float", 8, "tensor", dynamic=False),
    ),
    bits_per_weight=lambda params, plain_bits, width: 8 + plain_bits / width,
    beside=_beside,
)
