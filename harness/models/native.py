"""Checkpoints that were published quantized, as 16-bit models: their shapes, and how transformers unpacks them.

gpt-oss stores its experts in MXFP4 (Rouhani et al., arXiv:2310.10537: 4-bit floats in blocks of 32 that share a power
of two), DeepSeek-V3 its matrices in FP8 E4M3 with a scale per block of 128 × 128 (arXiv:2412.19437, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from harness.models.headers import Header

Shape = tuple[int, ...]


def dequantized(header: Header) -> Header:
    """The header of the dense model that transformers makes of a checkpoint in one of the ``FORMATS``."""
    unpacked: dict[str, Shape] = {}
    for name, shape in header.shapes.items():
        made = FORMATS[header.quantization or ""](name, shape)
        if made is not None:
            unpacked[made[0]] = made[1]
    return replace(header, shapes=unpacked, quantization=None)


def _mxfp4(name: str, shape: Shape) -> tuple[str, Shape] | None:
    """Two codes in a byte: (experts, outputs, blocks, 16) becomes (experts, inputs, outputs); scales disappear."""
    if name.endswith("_scales"):
        return None
    if not name.endswith("_blocks") or len(shape) != 4:
        return name, shape
    experts, outputs, blocks, size = shape
    return name.removesuffix("_blocks"), (experts, blocks * size * 2, outputs)


def _fp8(name: str, shape: Shape) -> tuple[str, Shape] | None:
    return None if name.endswith(("_scale_inv", ".activation_scale")) else (name, shape)


FORMATS: Mapping[str, Callable[[str, Shape], tuple[str, Shape] | None]] = MappingProxyType(
    {"mxfp4": _mxfp4, "fp8": _fp8}
)
"""By quant_method: what a stored tensor is in the dense model, None for scales."""


def unpacking_configuration(method: str) -> Any:
    """What ``from_pretrained(quantization_config=…)`` takes to make a checkpoint of that quant_method dense."""
    from transformers import FineGrainedFP8Config, Mxfp4Config

    return {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}[method](dequantize=True)
