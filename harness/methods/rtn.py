"""Round to nearest: integer weights without calibration, really packed.

The matrices are stored in 8, 4, 3 or 2 bits with float16 scales, and unpacked to the compute dtype
before every product: small in memory, and honestly slower than the unquantized model. The
checkpoint is an ordinary transformers one with a quantizer of its own, ``qharness-rtn``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.contracts import Method, MethodParams, QuantizeJob
from harness.numerics import affine


class RtnParams(MethodParams):
    """``group_size`` counts the input columns that share a scale, or is ``channel`` or ``tensor``."""

    bits: Literal[8, 4, 3, 2] = 4
    group_size: Annotated[int, Field(gt=0)] | Literal["channel", "tensor"] = 64
    symmetric: bool = False


def enable() -> None:
    """Registers the checkpoint format with transformers."""
    from harness.methods import rtn_module

    rtn_module.register()


def quantize(job: QuantizeJob[RtnParams]) -> Any:
    from harness.methods import rtn_module
    from harness.models.scope import decoder_linears

    model = job.load()
    params = job.params
    for name, linear in decoder_linears(model):
        packed = rtn_module.PackedLinear.from_linear(linear, params.bits, params.group_size, params.symmetric)
        model.set_submodule(name, packed)
    model.config.quantization_config = rtn_module.RtnConfig(**params.model_dump())
    model.save_pretrained(job.out)
    return model


RTN = Method(
    name="rtn",
    version=1,
    summary="round to nearest in 8, 4, 3 or 2 bits, packed, unpacked before each product",
    params=RtnParams,
    quantize=quantize,
    enable=enable,
    group_size=lambda params: params.group_size if isinstance(params.group_size, int) else None,
    bits_per_weight=lambda params, plain_bits, width: affine.bits_per_weight(params.bits, params.group_size, width),
)
