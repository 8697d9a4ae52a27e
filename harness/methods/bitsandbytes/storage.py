"""What bitsandbytes' 4-bit layers store (Dettmers et al., arXiv:2305.14314, section 3): blocks, scales and tables."""

from __future__ import annotations

import math

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one where they are quantized too."""
CODE, NESTED_CODE = 16, 256
"""Values of a code for weights, and of one for scales."""


def bits_per_weight(double_quant: bool) -> float:
    """A code and its share of a scale, in float32, or in 8 bits under a float32 one."""
    return 4 + (8 + 32 / NESTED_BLOCK if double_quant else 32.0) / BLOCK


def tables(double_quant: bool, shape: tuple[int, int]) -> float:
    """Bytes beside that of a matrix (outputs, inputs): the float32 codes, the offset of scales, unfinished blocks."""
    weights = math.prod(shape)
    blocks = math.ceil(weights / BLOCK)
    if not double_quant:
        return 4 * (CODE + blocks - weights / BLOCK)
    scales = blocks + 4 * math.ceil(blocks / NESTED_BLOCK) - (1 + 4 / NESTED_BLOCK) * weights / BLOCK
    return 4 * (CODE + NESTED_CODE + 1) + scales
