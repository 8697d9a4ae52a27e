"""bitsandbytes' layers of 8 bits in the models that transformers loads, whoever quantized them."""

from __future__ import annotations

from functools import wraps
from typing import Any

QUANT_METHOD = "bitsandbytes"


def take_all_dimensions() -> None:
    """From now on in this process, the layers of LLM.int8() take inputs of any number of dimensions.

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
