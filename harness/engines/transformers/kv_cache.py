"""Key-value caches in fewer bits for the transformers engine.

A forward pass over a whole text never reads a cache, so texts are read in chunks: each chunk attends to earlier chunks
as the cache stores them, and to itself unrounded. This is chunked prefill; decoding uses chunks of one token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.core.identity import KvCache
from harness.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

VERSION = 1
CHUNK_TOKENS = 64
"""Tokens per chunk: few, so that most of a text is read from the cache; more than one, which would be slow."""
RESIDUAL_TOKENS = 128
"""transformers keeps up to this many of the newest tokens unrounded before it packs them with the rest."""
GROUP = 64
"""Numbers that share a scale; fewer if this does not divide the width of a token's keys."""
HQQ_BITS: Mapping[KvCache, int] = {"int8": 8, "int4": 4}
PACKAGES: Mapping[KvCache, tuple[str, ...]] = {"model": (), **dict.fromkeys(HQQ_BITS, ("hqq",)), "fp8": ()}
"""The caches that the engine supports, and the packages that each needs."""

CacheMaker = Callable[[], Any]


def cache_maker(kind: KvCache, config: Any) -> tuple[CacheMaker, str]:
    """A function that makes an empty cache of a kind for a model of this configuration, and a description of it.

    ``int8`` and ``int4`` are transformers' QuantizedCache with hqq, after KIVI (Liu et al., arXiv:2402.02750), in
    groups of 64 with up to 128 newest tokens unrounded. ``fp8`` rounds every key and value to float8 E4M3 without a
    scale, as serving stacks do without calibration. Raises UnsupportedError if a layer of the model cannot use it.
    """
    if kind in HQQ_BITS:
        bits, group = HQQ_BITS[kind], math.gcd(GROUP, _token_width(config))
        make = partial(_hqq_cache, config, bits, group)
        description = f"{bits} bits by hqq, groups of {group}, up to {RESIDUAL_TOKENS} newest tokens unrounded"
    else:
        make, description = partial(_fp8_cache, config), "float8 E4M3 without a scale, values beyond ±448 held there"
    try:
        make()
    except (ImportError, ValueError) as error:
        raise UnsupportedError(f"no {kind} key-value cache for this model: {error}") from error
    return make, description


def _hqq_cache(config: Any, bits: int, group: int) -> Any:
    from transformers import QuantizedCache

    return QuantizedCache("hqq", config, bits, q_group_size=group, residual_length=RESIDUAL_TOKENS)


def _token_width(config: Any) -> int:
    """How many numbers one token's keys in a layer have; groups must divide it to fit texts of any length."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int((getattr(text, "num_key_value_heads", None) or heads) * head)


def _fp8_cache(config: Any) -> Any:
    """A cache whose layers all store float8. Raises ValueError if a layer stores anything but all keys and values."""
    from transformers import Cache, DynamicCache

    own = DynamicCache(config=config).layers
    if not all(type(layer).__name__ == "DynamicLayer" for layer in own):
        raise ValueError("it has layers that keep other than all keys and values")
    return Cache(layers=[_fp8_layer() for _ in own])


def _fp8_layer() -> Any:
    import torch
    from transformers.cache_utils import DynamicLayer

    stored = torch.float8_e4m3fn
    largest = torch.finfo(stored).max

    def packed(states: torch.Tensor) -> torch.Tensor:
        return states.clamp(-largest, largest).to(stored)  # torch turns values beyond it into NaN

    class Fp8Layer(DynamicLayer):  # type: ignore[misc]
        """Stores (batch, heads, tokens, width) in float8 and returns it in the model's dtype."""

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.keys, self.values = packed(key_states), packed(value_states)
                return key_states, value_states
            keys = torch.cat([self.keys.to(key_states.dtype), key_states], dim=-2)
            values = torch.cat([self.values.to(value_states.dtype), value_states], dim=-2)
            self.keys = torch.cat([self.keys, packed(key_states)], dim=-2)
            self.values = torch.cat([self.values, packed(value_states)], dim=-2)
            return keys, values

    return Fp8Layer()
