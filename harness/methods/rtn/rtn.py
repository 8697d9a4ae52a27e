"""Round to nearest: integer weights without calibration, really packed.

The matrices are stored in 8, 4, 3 or 2 bits with float16 scales, and unpacked to the compute dtype before every
product: small in memory, but slower than the unquantized model. The checkpoint is an ordinary transformers one with
its own quantizer, ``qharness-rtn``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from harness.core.method import GroupSize, Method, MethodParams, Needs, QuantizeJob
from harness.models.scope import UNFUSES
from harness.numerics import affine

if TYPE_CHECKING:
    import torch

    from harness.methods.rtn.driver import PackedLinear


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
    from harness.models.scope import decoder_linears
    from harness.models.unfuse import unfuse

    model = job.load()
    unfuse(model, job.untouched)
    for name, linear in decoder_linears(model, job.untouched):
        model.set_submodule(name, _packed(job, name, linear))
    _configure(job, model)
    model.save_pretrained(job.out)
    return model


def _packed(job: QuantizeJob[RtnParams], name: str, linear: torch.nn.Linear) -> PackedLinear:
    from harness.methods.rtn.driver import PackedLinear

    own = job.params.model_copy(update=dict(job.overrides.get(name, {})))
    return PackedLinear.from_linear(linear, own.bits, own.group_size, own.symmetric)


def _configure(job: QuantizeJob[RtnParams], model: Any) -> None:
    from harness.methods.rtn.driver import RtnConfig

    overrides = {name: dict(own) for name, own in job.overrides.items()}
    untouched = list(job.untouched)
    model.config.quantization_config = RtnConfig(**job.params.model_dump(), untouched=untouched, overrides=overrides)


def quantize_parts(job: QuantizeJob[RtnParams]) -> None:
    from harness.models.streaming.quantizing import quantize_parts

    quantize_parts(job, partial(_packed, job), partial(_configure, job))


RTN = Method(
    name="rtn",
    version=2,
    summary="round to nearest in 8, 4, 3 or 2 bits, packed, unpacked before each product",
    params=RtnParams,
    quantize=quantize,
    quantize_parts=quantize_parts,
    streams=True,
    enable=enable,
    quantizes_experts=UNFUSES,
    kernel="dequantize",
    overrides=True,
    needs=lambda params: Needs(input_divisor=params.group_size if isinstance(params.group_size, int) else None),
    bits_per_weight=lambda params, plain_bits, width: affine.bits_per_weight(params.bits, params.group_size, width),
)
