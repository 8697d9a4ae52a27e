"""Checkpoints that were published quantized, as 16-bit models: their shapes, and how transformers unpacks them.

gpt-oss stores its experts in MXFP4 (Rouhani et al., arXiv:2310.10537: 4-bit floats in blocks of 32 that share a power
of two), DeepSeek-V3 its matrices in FP8 E4M3 with a scale per block of 128 × 128 (arXiv:2412.19437, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def whole_blocks(config: Mapping[str, Any]) -> Iterator[None]:
    """Lets transformers unpack FP8 matrices whose last blocks are smaller; ``config`` is their quantization_config.

    transformers 5.17 takes rows ÷ scales for the height of a block. DeepSeek-V3's keys and values have 576 rows and 5
    scales, on which it fails; other heights, such as 192 rows with 2 scales, it unpacks with the wrong scales.
    """
    block = config.get("weight_block_size")
    if config.get("quant_method") != "fp8" or not block:
        yield
        return
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    plain = Fp8Dequantize._dequantize_one

    def padded(self: Any, codes: Any, scales: Any, *arguments: Any, **options: Any) -> Any:
        rows, columns = codes.shape[-2:]
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        if codes.is_floating_point() and tuple(scales.shape[-2:]) == grid:
            beyond = (0, grid[1] * block[1] - columns, 0, grid[0] * block[0] - rows)
            codes = torch.nn.functional.pad(codes.float(), beyond)
        return plain(self, codes, scales, *arguments, **options)[..., :rows, :columns].contiguous()

    Fp8Dequantize._dequantize_one = padded
    try:
        yield
    finally:
        Fp8Dequantize._dequantize_one = plain
