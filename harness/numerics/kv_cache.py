"""Bytes of a key-value cache: counted in the real cache, and calculated from a model's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def stored_bytes(cache: Any) -> int:
    """Bytes of the storages behind all tensors that a cache object holds, each storage counted once.

    A tensor's own size is not used, because a view of a longer buffer (a static cache) occupies the whole buffer.
    """
    return sum({t.untyped_storage().data_ptr(): int(t.untyped_storage().nbytes()) for t in _tensors(cache)}.values())


def element_bytes(cache: Any) -> int:
    """Bytes of one element of the cache's largest tensor. Raises ValueError if the cache holds no tensor."""
    largest = max(_tensors(cache), key=lambda tensor: tensor.nbytes, default=None)
    if largest is None:
        raise ValueError("the cache holds no tensor")
    return largest.element_size()


def bytes_per_token(layers: int, kv_heads: int, head_dim: int, element_bytes: int) -> int:
    """A key and a value in each layer: 2 · layers · heads · dimension · bytes per element."""
    return 2 * layers * kv_heads * head_dim * element_bytes


def expected_bytes_per_token(config: Mapping[str, Any], element_bytes: int) -> int | None:
    """The same, from a model's config.json; None if the config does not give the shape.

    With multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1) a layer caches a compressed latent
    and one rotary key for all heads in place of keys and values.
    """
    shape: Mapping[str, Any] = config.get("text_config") or config
    layers, heads = shape.get("num_hidden_layers"), shape.get("num_attention_heads")
    if layers and (latent := shape.get("kv_lora_rank")):
        return int(layers * (latent + (shape.get("qk_rope_head_dim") or 0)) * element_bytes)
    if not layers or not heads or not (shape.get("head_dim") or shape.get("hidden_size")):
        return None
    dimension = shape.get("head_dim") or shape["hidden_size"] // heads
    return bytes_per_token(layers, shape.get("num_key_value_heads") or heads, dimension, element_bytes)


def _tensors(held: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """All tensors reachable from an object through attributes, lists, tuples and dictionaries."""
    import torch

    seen = set() if seen is None else seen
    if id(held) in seen or isinstance(held, str | int | float | bool | type | None):
        return
    seen.add(id(held))
    if isinstance(held, torch.Tensor):
        if hasattr(held, "__tensor_flatten__") and type(held) is not torch.Tensor:
            parts: Any = [getattr(held, name) for name in held.__tensor_flatten__()[0]]
            yield from _tensors(parts, seen)
        else:
            yield held
        return
    inner = held.values() if isinstance(held, Mapping) else held if isinstance(held, list | tuple) else ()
    for each in (*inner, *(getattr(held, "__dict__", None) or {}).values()):
        yield from _tensors(each, seen)
