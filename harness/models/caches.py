"""What each layer of a model caches: counted in a forward pass on the meta device, which has shapes and no numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from harness.core.model import LayerCache

if TYPE_CHECKING:
    import torch

CACHES = ("past_key_values", "cache_params", "state")
"""What models of transformers call their cache, as an argument and in their output."""
UNCOUNTED = ("mems", "past_buckets_states")
"""XLNet's and Reformer's names for what they keep, which is not counted."""

NORM = "RMSNorm"
"""How the names of norms' classes end that take one tensor, and return one like it. HY-V4 has one without a
weight, which returns a number per token: such norms compute."""
QUESTIONS: Mapping[str, bool | None] = MappingProxyType(
    {
        "transformers.masking_utils.find_packed_sequence_indices": None,
        "transformers.masking_utils._ignore_bidirectional_mask_sdpa": False,
        "transformers.PreTrainedModel.warn_if_padding_and_no_attention_mask": None,
        "torch._check_tensor_all_with": None,
    }
)
"""What is asked of numbers, of which there are none, and the answer for one text without padding: whether texts are
packed into one, whether a mask masks nothing, whether to warn of padding, and whether indices are within bounds."""
ROUTER = "TopKGating"
"""How the name of JetMoE's routers ends, which count the tokens of each expert. Its attention has experts too."""


@dataclass(frozen=True)
class _CacheCount:
    """What a layer keeps after some tokens: numbers by dtype, the longest text that it would keep (None: all), and how
    many tokens it compresses into one entry (0: it does not)."""

    numbers: Mapping[str, int]
    window: int | None = None
    block: int = 0


def count_caches(model: Any) -> tuple[LayerCache, ...]:
    """What the layers of a language model on the meta device keep of a text, in transformers' own growing cache.

    The passes are of 1 and 2 tokens, of some around the end of a block if layers compress, and of more than the longest
    window: a cache that they do not explain is refused. Experts and norms do not compute, because they cache nothing:
    some experts loop over those that tokens chose, which only numbers would tell, and norms take a third of the time.
    A model no part of which takes a cache, such as the first GPT, keeps nothing: each token computes the whole text
    again.

    Raises ValueError for a cache that cannot be read, and whatever the model raises if it cannot run without numbers.
    """
    if not {*CACHES, *UNCOUNTED} & _arguments(model):
        return ()
    _idle(model)
    dtype = str(model.dtype).removeprefix("torch.")
    constants = dict(_attributes(model))
    counts = {tokens: _after(model, tokens, constants) for tokens in (1, 2)}
    beyond = max((layer.window or 0 for layer in counts[1]), default=0) + 3
    starts = {block: -(-beyond // block) * block + 1 if block else 1 for block in {each.block for each in counts[1]}}
    for block, start in starts.items():
        for tokens in (start, start + 1, start + block) if block else ():
            counts[tokens] = _after(model, tokens, constants)
    found = tuple(
        _layer({tokens: layers[number] for tokens, layers in counts.items()}, starts[first.block], dtype)
        for number, first in enumerate(counts[1])
    )
    last = max(counts) + beyond
    for layer, held in zip(found, _after(model, last, constants), strict=True):
        if _numbers(layer, last, dtype) != held.numbers:
            raise ValueError("a layer's cache grows in steps, or with something other than its tokens")
    return found


def _arguments(model: Any) -> set[str]:
    """The names of what its modules take, wherever in the model they are."""
    kinds = {type(module) for module in model.modules()}
    return {name for kind in kinds for name in signature(kind.forward).parameters}


def _idle(model: Any) -> None:
    """Has a model's experts and norms return states as they would, but of no numbers."""
    import torch

    for name, module in model.named_modules():
        is_experts = name.endswith("experts") and not isinstance(module, torch.nn.ModuleList)
        is_norm = type(module).__name__.endswith(NORM) and hasattr(module, "weight")
        if is_experts or is_norm:
            module.forward = lambda states, *routing, **others: torch.empty_like(states)
        elif type(module).__name__.endswith(ROUTER):
            module.forward = partial(_route, module.top_k, module.num_experts)


def _route(chosen: int, experts: int, states: torch.Tensor) -> tuple[Any, ...]:
    """What JetMoE's router answers if the first expert gets all tokens, each ``chosen`` times.

    The order of the places by expert, the token of each place, its weight, the places of each expert, and scores.
    """
    weights = states.new_empty(len(states) * chosen)
    order = weights.long()
    return order, order, weights, [len(weights)] + [0] * (experts - 1), states.new_empty(len(states), experts)


def _layer(counts: Mapping[int, _CacheCount], start: int, dtype: str) -> LayerCache:
    """From what it keeps after texts of some lengths; the last of ``start`` tokens begins a block, if it has blocks."""
    first = counts[1]
    held = {tokens: count.numbers.get(dtype, 0) for tokens, count in counts.items()}
    known = LayerCache(0)
    if first.block:
        known = replace(known, block=first.block, entry=held[start + first.block] - held[start])
        known = replace(known, pending=held[start + 1] - held[start] - _step(known, start))
    token = held[2] - held[1] - _step(known, 1)
    known = replace(known, token=token, window=first.window if token else None)
    beside = 0 if dtype == "float32" else first.numbers.get("float32", 0)
    return replace(known, state=held[start] - round(known.numbers(start)), float32_state=beside)


def _step(layer: LayerCache, tokens: int) -> int:
    """What one more token adds."""
    return round(layer.numbers(tokens + 1) - layer.numbers(tokens))


def _numbers(layer: LayerCache, tokens: int, dtype: str) -> dict[str, int]:
    """The numbers by dtype that a layer is expected to keep."""
    found = Counter({dtype: round(layer.numbers(tokens)), "float32": layer.float32_state})
    return {name: count for name, count in found.items() if count}


def _after(model: Any, tokens: int, constants: Collection[str]) -> list[_CacheCount]:
    """What each layer keeps after a text: one token more than its prompt, because a prompt is kept whole.

    ``constants`` are the tensors that modules had as attributes before any pass: what they have since is kept too.
    """
    import torch
    from transformers import DynamicCache

    lengths = [length for length in (tokens - 1, 1) if length]
    with torch.inference_mode(), ExitStack() as answered:
        for name, answer in QUESTIONS.items():
            answered.enter_context(patch(name, lambda *_, answer=answer: answer, create=True))
        if passed := _passed(model, lengths, {}):
            [cache] = passed.values()
            return _held(cache, model.config.get_text_config().num_hidden_layers)
        cache = DynamicCache(config=model.config)
        _passed(model, lengths, {"past_key_values": cache})
    states = [tensor for name, tensor in _attributes(model) if name not in constants]
    if not states:
        raise ValueError("it returns no cache that could be counted")
    return [*_held(cache, len(cache.layers)), *(_CacheCount(_stored([tensor])) for tensor in states)]


def _passed(model: Any, lengths: Iterable[int], passed: dict[str, Any]) -> dict[str, Any]:
    """What is handed to the pass after those of some lengths: the cache by its name, if the model returns it."""
    import torch

    for length in lengths:
        ids = torch.zeros(1, length, dtype=torch.long, device="meta")
        output = model(input_ids=ids, use_cache=True, **passed)
        passed = {name: output[name] for name in CACHES if output.get(name) is not None} or passed
    return passed


def _held(cache: Any, count: int) -> list[_CacheCount]:
    """What each of ``count`` layers has in a cache. Tensors beside the layers count as further layers.

    A model that might have an encoder has a second cache for it, which is empty without one.
    """
    cache = getattr(cache, "self_attention_cache", cache)
    if isinstance(cache, list):  # of tensors, each with all layers last
        shares = {dtype: numbers // count for dtype, numbers in _stored(cache).items()}
        return [_CacheCount(shares)] * count
    if not hasattr(cache, "layers"):
        by_layer = [held for held in vars(cache).values() if isinstance(held, dict) and set(held) == set(range(count))]
        if len(by_layer) != 1:
            raise ValueError(f"its cache is a {type(cache).__name__}, whose layers cannot be told apart")
        return [_CacheCount(_stored(_tensors([by_layer[0][layer]]))) for layer in range(count)]
    beside = [tensor for name, held in vars(cache).items() if name != "layers" for tensor in _tensors([held])]
    return [
        *(
            _CacheCount(
                _stored(_tensors([vars(layer)])),
                getattr(layer, "sliding_window", None),
                getattr(layer, "compress_rate", 0),
            )
            for layer in cache.layers
        ),
        *(_CacheCount(_stored([tensor])) for tensor in beside),
    ]


def _attributes(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that modules keep as plain attributes: the states of RecurrentGemma's layers."""
    for name, module in model.named_modules():
        for own, value in vars(module).items():
            yield from ((f"{name}.{own}", tensor) for tensor in _tensors([value]) if not own.startswith("_"))


def _stored(tensors: Iterable[torch.Tensor]) -> dict[str, int]:
    """Floating-point numbers in the storages behind some tensors, by dtype, each storage once."""
    storages = {tensor.untyped_storage()._cdata: tensor for tensor in tensors}
    found: Counter[str] = Counter()
    for tensor in storages.values():
        if tensor.is_floating_point():
            name = str(tensor.dtype).removeprefix("torch.")
            found[name] += tensor.untyped_storage().nbytes() // tensor.element_size()
    return {name: count for name, count in found.items() if count}


def _tensors(held: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among some values, and in the lists, tuples and dictionaries among them."""
    import torch

    for value in held:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
