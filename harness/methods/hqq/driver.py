"""A layer of hqq's as three tensors in safetensors, and back."""

from __future__ import annotations

from typing import Any

STORED = ("W_q", "scale", "zero")
"""Packed codes, and the scales and zero points of their groups; ``bias`` beside them where there is one."""


def configuration(bits: int, group_size: int) -> dict[str, Any]:
    """hqq's own: groups along the input columns, as its authors advise."""
    from hqq.core.quantize import BaseQuantizeConfig

    return BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=1)  # type: ignore[no-any-return]


def restore(stored: dict[str, Any], bits: int, group_size: int, shape: tuple[int, int], dtype: Any, device: str) -> Any:
    """The HQQLinear of ``shape`` (outputs, inputs) whose tensors those are, on ``device``."""
    import torch
    from hqq.core.quantize import HQQLinear, Quantizer

    layer = HQQLinear(None, configuration(bits, group_size), compute_dtype=dtype, device=device, initialize=False)
    packing = Quantizer.bit_to_packing[bits]
    state = {
        "W_q": torch.nn.Parameter(stored["W_q"], requires_grad=False),
        "scale": stored["scale"],
        "zero": stored["zero"],
        "nbits": bits,
        "group_size": group_size,
        "shape": torch.Size(shape),
        "axis": 1,
        "packing": packing,
        "unpack_view_dtype": Quantizer.unpack_view_dtype[packing],
        "view_as_float": False,
        "quant_scale": False,
        "quant_zero": False,
    }
    if "bias" in stored:
        state["bias"] = stored["bias"]
    layer.load_state_dict(state)
    return layer
