"""bitsandbytes' layers in the models that transformers loads, whoever quantized them."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

from harness.core.foreign import parse_json, shown
from harness.errors import SourceError
from harness.models import headers, safetensors

QUANT_METHOD = "bitsandbytes"
BLOCK, PACKED_ROWS = 64, 32
"""Weights that share a scale in 4 bits, and the rows that a CPU with AVX512-BF16 packs together."""
CPU_DIVISOR = BLOCK
"""Of the input widths of 4-bit matrices. With AVX-512, others are unpacked with scales of other blocks."""
_STATE = ".quant_state.bitsandbytes__"
"""In the name of what is stored beside a 4-bit matrix: JSON with its shape, which the codes have lost."""
_MAX_STATE_BYTES = 4096


def stored_widths(folder: Path) -> set[int]:
    """The input widths of a checkpoint's 4-bit matrices. Raises SourceError if its files cannot be read."""
    found: set[int] = set()
    for file in headers.weight_files(folder):
        held = safetensors.read(file)
        states = {
            name: each for name, each in held.items() if _STATE in name and each.end - each.begin <= _MAX_STATE_BYTES
        }
        for name, content in safetensors.contents(file, states).items():
            state = parse_json(content, f"{shown(file)}: {name}", SourceError)
            shape = state.get("shape") if isinstance(state, dict) else None
            if isinstance(shape, list) and shape and type(shape[-1]) is int:
                found.add(shape[-1])
    return found


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
