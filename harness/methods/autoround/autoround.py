"""auto-round's SignRound: rounding and clipping learned block by block (Cheng et al., arXiv:2309.05516).

Signed gradient descent adjusts each weight's rounding by at most half a grid step, and the limits of each group's
range, to preserve the block's output on the calibration text. Rounding and clipping are then fixed and packed.
"""

from __future__ import annotations

import math
from typing import Literal

from harness.core.format import Codes
from harness.core.method import GroupSize, Method, MethodParams, Needs, QuantizeJob, Steps
from harness.methods.autoround import driver as autoround
from harness.models.auto_round import QUANT_METHOD

SCALES = "float16"
"""The dtype of its stored scales, in which the loaded layers multiply them by their codes."""
SCALE_BITS = 16


class AutoRoundParams(MethodParams):
    """``group_size`` is the number of input columns that share a scale, or ``channel``: one scale per output channel.

    ``symmetric`` fixes the zero point at the middle of the grid; it is still stored. ``iterations`` is the number of
    optimizer steps per block.
    """

    bits: Literal[8, 4, 3, 2] = 4
    group_size: GroupSize | Literal["channel"] = 128
    symmetric: bool = True
    iterations: Steps = 200


def quantize(job: QuantizeJob[AutoRoundParams]) -> None:
    autoround.quantize(job, _rounding(job))


def quantize_parts(job: QuantizeJob[AutoRoundParams]) -> None:
    autoround.quantize_parts(job, _rounding(job))


def _rounding(job: QuantizeJob[AutoRoundParams]) -> autoround.Rounding:
    """Raises ValueError if an override changes the iterations, which all layers of a block share."""
    from auto_round.algorithms.quantization.sign_round.config import SignRoundConfig

    layers = {}
    for name, own in job.overrides.items():
        params = job.params.model_copy(update=dict(own))
        if params.iterations != job.params.iterations:
            raise ValueError(f"{name}: the layers of a block learn together, so none has iterations of its own")
        layers[name] = _scheme(params)
    algorithm = SignRoundConfig(iters=job.params.iterations, **_scheme(job.params))
    return autoround.Rounding(f"W{job.params.bits}A16", algorithm, layers, stored=SCALES)


def _scheme(params: AutoRoundParams) -> dict[str, int | bool]:
    group_size = -1 if params.group_size == "channel" else params.group_size
    return {"bits": params.bits, "group_size": group_size, "sym": params.symmetric}


def _needs(params: AutoRoundParams) -> Needs:
    group_size = 1 if params.group_size == "channel" else params.group_size
    return Needs(input_divisor=math.lcm(autoround.WORD, group_size), output_divisor=autoround.WORD)


def _bits(params: AutoRoundParams, plain_bits: float, width: int) -> float:
    columns = width if params.group_size == "channel" else params.group_size
    return params.bits + (SCALE_BITS + params.bits) / columns


AUTOROUND = Method(
    name="autoround",
    version=2,  # 1 did not say which matrices it had only rounded to nearest
    summary="auto-round: rounding and clipping learned by signed gradient descent (SignRound), packed",
    params=AutoRoundParams,
    packages=autoround.PACKAGES,
    extra=autoround.EXTRA,
    quantize=quantize,
    quantize_parts=quantize_parts,
    parts_peak=autoround.tuning_peak,
    refuses_parts=autoround.refuses_parts,
    streams=True,
    enable=autoround.enable,
    calibrated=lambda params: True,
    passes=lambda params, samples: 4.0 + 3.0 * autoround.ROWS * params.iterations / samples,
    needs=_needs,
    overrides=True,
    quantizes_experts=frozenset({"deepseek_v3", "gpt_oss", "mixtral", "olmoe", "qwen3_moe"}),
    kernel="dequantize",
    codes=lambda params: Codes.grouped(QUANT_METHOD, params.bits, params.group_size, asymmetric=not params.symmetric),
    bits_per_weight=_bits,
)
