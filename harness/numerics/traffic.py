"""The bytes that a step of a model must read and the operations it must do, calculated from what is stored.

These are minima for any program, so they bound the speed from above: each step reads the weights once and the
key-value cache once, and nothing else. docs/explanation/speed-bounds.md derives each figure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.core.capability import Product, StoredTensor
from harness.core.layers import layer_number, layer_of
from harness.core.model import Attention

VERSION = 1
PACKED = "packed"
"""Used in place of a dtype: codes are multiplied directly, in a dtype that the engine does not tell. The machine's
fastest unit bounds it."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of an element of the dtypes that models run in."""
UNPACKED_BYTES = {**DTYPE_BYTES, "int32": 4}
"""Of an element of the dtypes that codes are unpacked to."""
DENSE = Product("plain")
UNKNOWN = Product("packed")
"""Of quantized layers without a product: they read no less than they store, and may multiply in the fastest unit."""
_EXPERTS = re.compile(r"(^|\.)experts(\.|$)")
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
ACTIVE_COUNTS = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k", "num_experts_per_token")
"""The keys of configurations for the experts of a layer, and for those of them that a token is routed to."""


@dataclass(frozen=True)
class Routing:
    """A mixture of experts: how many experts each layer has, and how many of them each token uses.

    ``shares`` are those of the tokens that go to each expert, by the number of the layer, where they were measured.
    """

    experts: int
    active: int
    shares: Mapping[int | None, Sequence[float]] = field(default_factory=dict)

    def distinct(self, tokens: int, layer: int | None = None) -> float:
        """The expected number of experts of a layer that a step over ``tokens`` tokens reads.

        Σ (1 − (1 − p)ⁿ) over the shares p of the layer's experts, assuming that tokens choose independently. Without
        measured shares every p is k/E, which gives the most: a router that prefers some experts reads fewer.
        """
        even = [self.active / self.experts] * self.experts
        return sum(1 - (1 - share) ** tokens for share in self.shares.get(layer, even))


@dataclass(frozen=True)
class AttentionShape:
    """What the layers cache, and the bytes of a number in the cache.

    A layer that keeps no tokens, but a state of fixed size, attends to nothing.
    """

    attention: Attention
    kv_element_bytes: int

    def read_bytes(self, tokens: float) -> float:
        """Bytes of the cache of ``tokens`` tokens of one sequence, over all layers."""
        return self.attention.cache_bytes(tokens, self.kv_element_bytes)

    def operations(self, tokens: float) -> float:
        """Attention of one token over ``tokens`` tokens, itself included: scores and weighted values.

        4 · heads · dimension for each token that is attended to.
        """
        return self._per_pair * sum(_within(window, tokens) for window in self._windows)

    def prompt_operations(self, tokens: int) -> float:
        """The same summed over the tokens of a prompt: 1 + 2 + … + n, limited by each layer's window."""
        total = 0
        for window in self._windows:
            near = min(tokens, window) if window is not None else tokens
            total += near * (near + 1) // 2 + (tokens - near) * near
        return self._per_pair * total

    @property
    def _windows(self) -> list[int | None]:
        """How many tokens each layer that attends to any can look back, or None for all."""
        return [layer.window for layer in self.attention.layers if layer.token]

    @property
    def _per_pair(self) -> int:
        """Operations of one token attending to another in one layer."""
        return 4 * self.attention.heads * self.attention.head_dim


@dataclass(frozen=True)
class Running:
    """What the traffic of a loaded model depends on, whatever the pass.

    ``running_bytes`` is the size of all weights after the first pass. Anything unknown (None) is left out of the step,
    which is then smaller than it could be.
    """

    ledger: Sequence[StoredTensor]
    vocabulary: int
    running_bytes: int
    routing: Routing | None = None
    attention: AttentionShape | None = None

    @property
    def dtype(self) -> str:
        """The dtype of activations: that of most unquantized parameters."""
        found: Counter[str] = Counter()
        for entry in self.ledger:
            if not entry.quantized and entry.storage in DTYPE_BYTES:
                found[entry.storage] += entry.parameters
        return found.most_common(1)[0][0] if found else "float32"


@dataclass(frozen=True)
class Step:
    """The minimum work of one step of a whole batch. ``operations`` are by dtype of the multiplication (or PACKED).

    ``dequantize_bytes`` is what layers that unpack first write and read back; ``read_bytes`` does not include it.
    """

    read_bytes: float
    kv_bytes: float
    dequantize_bytes: float
    operations: Mapping[str, float] = field(default_factory=dict)


def decode_step(model: Running, products: Mapping[str, Product], batch: int, prompt: int, new: int) -> Step:
    """The mean of ``new`` steps after a prompt. Each reads the weights and the cache.

    ``products`` are those of ``batch`` rows, by layer; layers without one are dense, or UNKNOWN if they are quantized.

    At step i (from 0) the cache holds prompt + i tokens, on average prompt + (new − 1)/2. The new token attends to
    these and to itself.
    """
    past = prompt + (new - 1) / 2
    step = _weights(model, products, batch, batch)
    if model.attention is None:
        return step
    kv_bytes = batch * model.attention.read_bytes(past)
    return _with(step, kv_bytes, model.dtype, batch * model.attention.operations(past + 1))


def prefill(model: Running, products: Mapping[str, Product], batch: int, prompt: int) -> Step:
    """Reads the weights once for all tokens; the output embedding is applied only to the last token of each row.

    ``products`` are those of ``batch * prompt`` rows, by layer; layers without one are dense, or UNKNOWN if they are
    quantized.
    """
    step = _weights(model, products, batch * prompt, batch)
    if model.attention is None:
        return step
    return _with(step, 0.0, model.dtype, batch * model.attention.prompt_operations(prompt))


def routing(config: Mapping[str, Any]) -> Routing | None:
    """The mixture of experts in a config.json; None if it has none."""
    text: Mapping[str, Any] = config.get("text_config") or config
    experts, active = (_most(text, names) for names in (EXPERT_COUNTS, ACTIVE_COUNTS))
    return Routing(experts, active) if experts and active else None


def _most(text: Mapping[str, Any], names: Sequence[str]) -> int:
    """The first of the keys that the configuration has; the largest number if it lists one per layer."""
    found = next((text[name] for name in names if text.get(name)), 0)
    return max((each or 0 for each in found), default=0) if isinstance(found, list) else int(found)


def _weights(model: Running, products: Mapping[str, Product], tokens: int, predicted: int) -> Step:
    """The step for ``tokens`` tokens at once, without attention; the head is applied to ``predicted`` of them."""
    dtype = model.dtype
    tied = any(entry.role == "head" and entry.tied for entry in model.ledger)
    stored = sum(_bytes(entry) for entry in model.ledger)
    read = -float(max(0, stored - model.running_bytes))  # bytes saved by repacking in the first pass
    dequantized = 0.0
    operations: Counter[str] = Counter()
    for entry in model.ledger:
        layer = entry.name.removesuffix(".weight")
        matrix = entry.role == "linear"
        product = products.get(layer, UNKNOWN if matrix and entry.quantized else DENSE)
        if entry.role == "embedding":
            read += _bytes(entry) * (1.0 if tied else min(1.0, tokens / model.vocabulary))
            continue
        if matrix and layer_of(entry.name) is None:
            continue  # position embeddings are only gathered, and modules for other inputs than text do not run
        if entry.name.endswith("inv_freq"):
            continue  # the rotary embedding's small table, and an unused copy of it
        parts = _experts_read(model, entry, tokens)
        multiplied = product.dtype or (PACKED if product.family == PACKED else _plain_dtype(entry, dtype))
        if matrix and product.family == "plain" and entry.quantized:  # unpacked once: each step reads the dense matrix
            read += parts * entry.parameters * DTYPE_BYTES[dtype]
        else:
            read += parts * _bytes(entry)
        if matrix and product.family == "dequantize":
            dequantized += 2 * parts * entry.parameters * UNPACKED_BYTES.get(multiplied, DTYPE_BYTES[dtype])
        if matrix or entry.role == "head":
            times = predicted if entry.role == "head" else tokens
            operations[multiplied] += 2 * _experts_met(model, entry) * entry.parameters * times  # type: ignore[assignment]
    return Step(max(read, 0.0), 0.0, dequantized, dict(operations))


def _with(step: Step, kv_bytes: float, dtype: str, operations: float) -> Step:
    """The step with its attention added."""
    whole = {**step.operations, dtype: step.operations.get(dtype, 0.0) + operations}
    return Step(step.read_bytes + kv_bytes, kv_bytes, step.dequantize_bytes, whole)


def _experts_read(model: Running, entry: StoredTensor, tokens: int) -> float:
    """The fraction of a tensor that a step over ``tokens`` tokens reads."""
    if not _EXPERTS.search(entry.name):
        return 1.0
    if model.routing is None:
        return 0.0
    return model.routing.distinct(tokens, layer_number(entry.name)) / model.routing.experts


def _experts_met(model: Running, entry: StoredTensor) -> float:
    """The fraction of a tensor that one token is multiplied with."""
    if not _EXPERTS.search(entry.name):
        return 1.0
    return model.routing.active / model.routing.experts if model.routing else 0.0


def _plain_dtype(entry: StoredTensor, running: str) -> str:
    return entry.storage if entry.storage in DTYPE_BYTES and not entry.quantized else running


def _bytes(entry: StoredTensor) -> int:
    return entry.value_bytes + entry.scale_bytes


def _within(window: int | None, tokens: float) -> float:
    return tokens if window is None else min(tokens, window)
