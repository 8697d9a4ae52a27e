"""What each layer of a model caches: counted in a forward pass on the meta device, which has shapes and no numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.model import LayerCache

if TYPE_CHECKING:
    import torch

NO_LOOP = "batched_mm"
"""How transformers computes experts without a loop over those that tokens chose, which only numbers would tell."""


@dataclass(frozen=True)
class _CacheCount:
    """What a layer keeps after some tokens: numbers by dtype, and the longest that it would keep (None: all)."""

    numbers: Mapping[str, int]
    window: int | None


def count_caches(model: Any) -> tuple[LayerCache, ...]:
    """What the layers of a language model on the meta device keep of a text, in transformers' own growing cache.

    The passes are of 1 and 2 tokens, and of more than the longest window: a cache that they do not explain is refused.
    Raises ValueError for it, and whatever the model raises if it cannot run without numbers.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    one, two = _after(model, 1), _after(model, 2)
    beyond = max((layer.window or 0 for layer in one), default=0) + 3
    found = tuple(_layer(first, second, dtype) for first, second in zip(one, two, strict=True))
    for layer, held in zip(found, _after(model, beyond), strict=True):
        if _numbers(layer, beyond, dtype) != held.numbers:
            raise ValueError("a layer's cache grows in steps, or with something other than its tokens")
    return found


def _layer(one: _CacheCount, two: _CacheCount, dtype: str) -> LayerCache:
    token = two.numbers.get(dtype, 0) - one.numbers.get(dtype, 0)
    state = one.numbers.get(dtype, 0) - token
    beside = 0 if dtype == "float32" else one.numbers.get("float32", 0)
    return LayerCache(token, one.window if token else None, state, beside)


def _numbers(layer: LayerCache, tokens: int, dtype: str) -> dict[str, int]:
    """The numbers by dtype that a layer is expected to keep."""
    found = Counter({dtype: round(layer.numbers(tokens)), "float32": layer.float32_state})
    return {name: count for name, count in found.items() if count}


def _after(model: Any, tokens: int) -> list[_CacheCount]:
    """What each layer keeps after a text: one token more than its prompt, because a prompt is kept whole."""
    import torch
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=model.config)
    with torch.inference_mode():
        for length in (tokens - 1, 1):
            if length:
                ids = torch.zeros(1, length, dtype=torch.long, device="meta")
                cache = model(input_ids=ids, past_key_values=cache, use_cache=True).past_key_values
    if not isinstance(cache, DynamicCache):
        raise ValueError(f"its cache is a {type(cache).__name__}, whose layers cannot be told apart")
    return [_CacheCount(_stored(layer), getattr(layer, "sliding_window", None)) for layer in cache.layers]


def _stored(layer: Any) -> dict[str, int]:
    """Floating-point numbers in the storages behind a layer's tensors, by dtype, each storage once."""
    storages = {tensor.untyped_storage()._cdata: tensor for tensor in _tensors(vars(layer))}
    found: Counter[str] = Counter()
    for tensor in storages.values():
        if tensor.is_floating_point():
            name = str(tensor.dtype).removeprefix("torch.")
            found[name] += tensor.untyped_storage().nbytes() // tensor.element_size()
    return {name: count for name, count in found.items() if count}


def _tensors(held: Any) -> Iterator[torch.Tensor]:
    """The tensors of a layer's attributes, some of which are dictionaries of them."""
    import torch

    for value in held.values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)
