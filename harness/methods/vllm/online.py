"""vLLM's online quantization: its loader rounds an unquantized checkpoint's matrices to nearest, one after the other.

There is no calibration and no quantized checkpoint. Only vLLM runs the result, so it quantizes in every run. The
schemes are those of ``vllm.config.quantization._ONLINE_SHORTHANDS`` in vLLM 0.32.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.core.format import VLLM_CONFIG_FORMAT, Activations, Codes, Number
from harness.core.method import Beside, Method, MethodParams, Setting

SCALE_BITS = 32
PER_TOKEN = Activations("float", 8, "token")


@dataclass(frozen=True)
class Scheme:
    """The codes of a scheme, and the bits of the scale that ``codes.group_size`` columns (or a channel) share."""

    number: Number
    bits: int
    group: Literal["tensor", "channel", "group", "block"]
    group_size: int | None = None
    activations: Activations | None = None
    scale_bits: int = SCALE_BITS


SCHEMES: Mapping[str, Scheme] = {
    "fp8_per_tensor": Scheme("float", 8, "tensor", activations=Activations("float", 8, "tensor")),
    "fp8_per_channel": Scheme("float", 8, "channel", activations=PER_TOKEN),
    "fp8_per_block": Scheme("float", 8, "block", 128, Activations("float", 8, "group")),
    "mxfp8": Scheme("float", 8, "group", 32, Activations("float", 8, "group"), scale_bits=8),
    "mxfp4": Scheme("float", 4, "group", 32, scale_bits=8),
    "int8_per_channel_weight_only": Scheme("int", 8, "channel"),
    "nvfp4_per_token": Scheme("float", 4, "group", 16, Activations("float", 4, "group"), scale_bits=8),
}


class VllmOnlineParams(MethodParams):
    """``scheme`` is vLLM's name of what weights and activations are rounded to.

    ``fp8_…``: float8 E4M3, with a scale per matrix, per output channel, or per square of 128 rows and columns; inputs
    are rounded at run time where the kernel does. ``mxfp8``, ``mxfp4``: 32 columns share a power of two.
    ``int8_per_channel_weight_only`` and ``nvfp4_per_token`` quantize only the experts of a mixture: of another model
    they quantize nothing.
    """

    scheme: Literal[
        "fp8_per_tensor",
        "fp8_per_channel",
        "fp8_per_block",
        "mxfp8",
        "mxfp4",
        "int8_per_channel_weight_only",
        "nvfp4_per_token",
    ] = "fp8_per_block"


def load_config(params: VllmOnlineParams, setting: Setting) -> dict[str, Any]:
    """The arguments of vLLM's EngineArgs that make its loader quantize, all but the untouched modules."""
    return {"quantization": params.scheme, "quantization_config": {"ignore": list(setting.untouched)}}


def _codes(params: VllmOnlineParams) -> Codes:
    scheme = SCHEMES[params.scheme]
    return Codes(
        f"online {params.scheme}",
        scheme.number,
        scheme.bits,
        scheme.group,
        scheme.group_size,
        activations=scheme.activations,
    )


def _bits(params: VllmOnlineParams, plain_bits: float, width: int) -> float:
    """A code and its share of a scale."""
    scheme = SCHEMES[params.scheme]
    sharing = {"tensor": None, "channel": width, "group": scheme.group_size, "block": (scheme.group_size or 1) ** 2}
    weights = sharing[scheme.group]
    return scheme.bits + (scheme.scale_bits / weights if weights else 0)


def _beside(params: VllmOnlineParams, plain_bits: float, shape: tuple[int, int]) -> Beside:
    """The scale of a whole matrix, and NVFP4's second one."""
    whole = SCHEMES[params.scheme].group == "tensor" or params.scheme == "nvfp4_per_token"
    return Beside(memory=SCALE_BITS / 8 if whole else 0.0)


VLLM_ONLINE = Method(
    name="vllm-online",
    version=1,
    summary="vLLM's own quantization while loading: float8 per matrix, channel or block, MXFP8, MXFP4; experts in int8",
    leaves_experts_because="no mixture was tried",
    params=VllmOnlineParams,
    load_config=load_config,
    configures=VLLM_CONFIG_FORMAT,
    codes=_codes,
    kernel="packed",
    bits_per_weight=_bits,
    beside=_beside,
)
