"""Key-value caches in fewer bits, for the transformers engine: what keeps the keys and values of the tokens before.

A forward pass over a whole text never reads a cache, so texts are read in chunks: each chunk attends to those before it
as the cache keeps them, and to itself as it is. That is prefill in chunks, and decoding with a chunk of one token.
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
"""Tokens of a chunk: few, so that most of a text is read from the cache, and more than one, which would take long."""
RESIDUAL_TOKENS = 128
"""transformers keeps up to so many of the newest tokens as they are, and then packs them with the rest."""
GROUP = 64
"""Numbers that share a scale; fewer in a model whose tokens' keys these do not divide."""
HQQ_BITS: Mapping[KvCache, int] = {"int8": 8, "int4": 4}
PACKAGES: Mapping[KvCache, tuple[str, ...]] = {"model": (), **dict.fromkeys(HQQ_BITS, ("hqq",)), "fp8": ()}
"""The caches that the engine keeps, and what each needs."""

CacheMaker = Callable[[], Any]


def cache_maker(kind: KvCache, config: Any) -> tuple[CacheMaker, str]:
    """What makes an empty cache of a kind for a model of this configuration, and what it is in words.

    ``int8`` and ``int4`` are transformers' QuantizedCache by hqq, after KIVI (Liu et al., arXiv:2402.02750), in groups
    of 64 with 128 newest tokens unrounded; ``fp8`` rounds every key and value to float8 E4M3 without a scale, as
    serving stacks do where nothing was calibrated. Raises UnsupportedError where the model has layers that cannot.
    """
    if kind in HQQ_BITS:
        bits, group = HQQ_BITS[kind], math.gcd(GROUP, _token_width(config))
        make = partial(_hqq_cache, config, bits, group)
        told = f"{bits} bits by hqq, groups of {group}, up to {RESIDUAL_TOKENS} newest tokens unrounded"
    else:
        make, told = partial(_fp8_cache, config), "float8 E4M3 without a scale, values beyond ±448 held there"
    try:
        make()
    except (ImportError, ValueError) as error:
        raise UnsupportedError(f"no {kind} key-value cache for this model: {error}") from error
    return make, told


def _hqq_cache(config: Any, bits: int, group: int) -> Any:
    from transformers import QuantizedCache

    return QuantizedCache("hqq", config, bits, q_group_size=group, residual_length=RESIDUAL_TOKENS)


def _token_width(config: Any) -> int:
    """The numbers of one token's keys in a layer, whose groups must come out even for a text of any length."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int((getattr(text, "num_key_value_heads", None) or heads) * head)


def _fp8_cache(config: Any) -> Any:
    """A cache whose every layer keeps float8. Raises ValueError where the model keeps other than keys and values."""
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
        return states.clamp(-largest, largest).to(stored)  # torch turns what is beyond into NaN

    class Fp8Layer(DynamicLayer):  # type: ignore[misc]
        """Keeps (batch, heads, tokens, width) in float8 and gives it back in the model's dtype."""

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
