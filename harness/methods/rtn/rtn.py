"""Round to nearest: integer weights without calibration, really packed.

The matrices are stored in 8, 4, 3 or 2 bits with float16 scales, and unpacked to the compute dtype before every
product: small in memory, but slower than the unquantized model. The checkpoint is an ordinary transformers one with
its own quantizer, ``qharness-rtn``.
"""

from __future__ import annotations

from typing import Any, Literal

from harness.core.method import GroupSize, Method, MethodParams, Needs, QuantizeJob
from harness.models.scope import UNFUSES
from harness.numerics import affine


class RtnParams(MethodParams):
    """``group_size`` is the number of input columns that share a scale, or ``channel`` or ``tensor``."""

    bits: Literal[8, 4, 3, 2] = 4
    group_size: GroupSize | Literal["channel", "tensor"] = 64
    symmetric: bool = False


def enable() -> None:
    """Registers the checkpoint format with transformers."""
    from harness.methods.rtn import driver as rtn_format

    rtn_format.register()


def quantize(job: QuantizeJob[RtnParams]) -> Any:
    from harness.methods.rtn import driver as rtn_format
    from harness.models.scope import decoder_linears
    from harness.models.unfuse import unfuse

    model = job.load()
    unfuse(model, job.untouched)
    params = job.params
    for name, linear in decoder_linears(model, job.untouched):
        own = params.model_copy(update=dict(job.overrides.get(name, {})))
        packed = rtn_format.PackedLinear.from_linear(linear, own.bits, own.group_size, own.symmetric)
        model.set_submodule(name, packed)
    model.config.quantization_config = rtn_format.RtnConfig(
        **params.model_dump(), untouched=list(job.untouched), overrides={k: dict(v) for k, v in job.overrides.items()}
    )
    model.save_pretrained(job.out)
    return model


RTN = Method(
    name="rtn",
    version=2,
    summary="round to nearest in 8, 4, 3 or 2 bits, packed, unpacked before each product",
    params=RtnParams,
    quantize=quantize,
    enable=enable,
    quantizes_experts=UNFUSES,
    kernel="dequantize",
    overrides=True,
    needs=lambda params: Needs(input_divisor=params.group_size if isinstance(params.group_size, int) else None),
    bits_per_weight=lambda params, plain_bits, width: affine.bits_per_weight(params.bits, params.group_size, width),
)
