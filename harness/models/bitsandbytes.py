"""bitsandbytes' layers in the models that transformers loads, whoever quantized them."""

from __future__ import annotations

from functools import wraps
from typing import Any

QUANT_METHOD = "bitsandbytes"


BLOCK, PACKED_ROWS = 64, 32
"""Weights that share a scale in 4 bits, and the rows that a CPU with AVX512-BF16 packs together."""


def take_all_shapes() -> None:
    """From now on in this process, bitsandbytes' layers take shapes that they would fail for."""
    _take_all_dimensions()
    _leave_unpacked()


def _leave_unpacked() -> None:
    """4-bit matrices that a CPU with AVX512-BF16 cannot pack are multiplied as on any other CPU: unpacked.

    It packs before its first product, 32 rows at a time, and fails at other numbers of rows.
    """
    from bitsandbytes.nn import Linear4bit

    plain = Linear4bit.__init__
    if hasattr(plain, "__wrapped__"):
        return

    @wraps(plain)
    def init(self: Any, input_features: int, output_features: int, *rest: Any, **options: Any) -> None:
        plain(self, input_features, output_features, *rest, **options)
        if output_features % PACKED_ROWS:
            self.support_avx512bf16_for_cpu = False

    Linear4bit.__init__ = init


def _take_all_dimensions() -> None:
    """The layers of LLM.int8() take inputs of any number of dimensions.

    Their product takes rows, or batches of rows. The second projections of latent attention read four dimensions.
    """
    from bitsandbytes.nn import Linear8bitLt

    plain = Linear8bitLt.forward
    if hasattr(plain, "__wrapped__"):
        return

    @wraps(plain)
    def forward(self: Any, states: Any) -> Any:
        if states.ndim <= 3:
            return plain(self, states)
        return plain(self, states.flatten(0, -2)).unflatten(0, states.shape[:-1])

    Linear8bitLt.forward = forward
