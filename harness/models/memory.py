"""Bytes of a model's weights by role, of its KV cache, and of a prefill's workspace.

Every matrix is estimated from its shape with the method's own arithmetic (``Method.bits_per_weight``, ``beside`` and
``padded``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness.core.method import Method
from harness.models.shapes import ModelShapes, NativeWeights, Widths

DTYPE_BITS = {"float32": 32.0, "float16": 16.0, "bfloat16": 16.0}
ROTARY_BYTES = 4
"""Bytes of an element of the rotary embedding's buffers: float32 whatever the model's dtype."""


def plain_bytes(parameters: float, bits: float) -> float:
    """Bytes of ``parameters`` at ``bits`` each."""
    return parameters * bits / 8


@dataclass(frozen=True)
class Quantized:
    """Bytes of the decoder's quantized matrices: in memory, in a checkpoint, and in tensors of the layers' own.

    ``unpacked`` is the size of dense matrices that exist beside the codes while the model runs.
    """

    memory: float
    disk: float
    modules: float
    unpacked: float


def quantized(
    method: Method[Any], params: Any, plain_bits: float, shapes: Iterable[tuple[int, ...]], device: str = "cpu"
) -> Quantized:
    """Bytes of matrices of those shapes on a device; a stack of experts' matrices counts as one matrix per expert."""
    codes = memory = disk = modules = dense = largest = 0.0
    for (*stacked, outputs, inputs), number in Counter(shapes).items():
        count = number * math.prod(stacked)
        beside = method.beside(params, plain_bits, (outputs, inputs))
        matrix = plain_bytes(outputs * inputs, plain_bits)
        rows, columns = method.padded(device, (outputs, inputs))
        packed = plain_bytes(rows * columns, method.bits_per_weight(params, plain_bits, columns))
        codes += count * packed
        memory += count * (packed + beside.memory)
        disk += count * (packed + beside.disk)
        modules += count * beside.modules
        dense += count * matrix
        largest = max(largest, matrix)
    if method.loaded == "dense":
        return Quantized(dense, disk, modules, 0.0)
    if codes >= dense:  # plain matrices need no unpacking
        return Quantized(memory, disk, modules, 0.0)
    return Quantized(memory, disk, modules, dense if method.loaded == "both" else largest)


@dataclass(frozen=True)
class Weights:
    """Bytes of the loaded weights by role; ``disk`` is the checkpoint that the method writes, if it does.

    ``other_inputs`` are the vision and audio parts of a multimodal model. ``active`` are the bytes that a step over one
    token reads: the experts that it is routed to, and of an embedding that is not the head too only one row.
    """

    linear: int
    embedding: int
    head: int
    other: int
    other_inputs: int
    unpacked: int
    disk: int | None
    bits_per_weight: float
    active: int

    @property
    def total(self) -> int:
        return self.linear + self.embedding + self.head + self.other + self.other_inputs


def weights(model: ModelShapes, method: Method[Any], params: Any, plain_bits: float, device: str = "cpu") -> Weights:
    """Bytes of the model under the method on a device; unquantized parameters have ``plain_bits`` each.

    They include a mixture's experts that the method leaves unquantized.
    """
    leaves = method.leaves_experts(model.model_type)
    covered = model.matrices if leaves else (*model.matrices, *model.experts)
    codes = quantized(method, params, plain_bits, covered, device)
    left = plain_bytes(model.expert_parameters, plain_bits) if leaves else 0.0
    experts = left or quantized(method, params, plain_bits, model.experts, device).memory
    kept = plain_bytes(model.kept, plain_bits)
    embedding, head = plain_bytes(model.embedding, plain_bits), plain_bytes(model.head, plain_bits)
    norms, other_inputs = plain_bytes(model.norms, plain_bits), plain_bytes(model.other_inputs, plain_bits)
    linear, other = codes.memory + left + kept, norms + codes.modules
    written = codes.disk + left + kept + embedding + head + norms + other_inputs
    return Weights(
        linear=math.ceil(linear),
        embedding=math.ceil(embedding),
        head=math.ceil(head),
        other=math.ceil(other + ROTARY_BYTES * model.rotary),
        other_inputs=math.ceil(other_inputs),
        unpacked=math.ceil(codes.unpacked),
        disk=math.ceil(written) if method.stage == "offline" else None,
        bits_per_weight=8 * (codes.memory + left) / model.decoder,
        active=math.ceil(linear - experts * (1 - model.active_share) + (head or embedding) + other),
    )


def native_weights(model: ModelShapes, native: NativeWeights, plain_bits: float) -> Weights:
    """Bytes of a natively quantized checkpoint, loaded in its own format."""
    linear = native.codes + plain_bytes(native.decoder + native.kept, plain_bits)
    embedding, head = plain_bytes(native.embedding, plain_bits), plain_bytes(native.head, plain_bits)
    norms, other_inputs = plain_bytes(native.norms, plain_bits), plain_bytes(native.other_inputs, plain_bits)
    unrouted = native.expert_codes * (1 - model.active_share)
    return Weights(
        linear=math.ceil(linear),
        embedding=math.ceil(embedding),
        head=math.ceil(head),
        other=math.ceil(norms + ROTARY_BYTES * model.rotary),
        other_inputs=math.ceil(other_inputs),
        unpacked=0,
        disk=math.ceil(linear + embedding + head + norms + other_inputs),
        bits_per_weight=8 * (native.codes + plain_bytes(native.decoder, plain_bits)) / model.decoder,
        active=math.ceil(linear - unrouted + (head or embedding) + norms),
    )


def kv_cache_bytes(model: Widths, context: int, batch: int, plain_bits: float) -> int:
    """What all layers keep of ``batch`` texts: keys and values, a window of them at most, and states of fixed size."""
    return math.ceil(batch * model.attention.cache_bytes(context, plain_bits / 8))


def kv_bytes_per_token(model: Widths, plain_bits: float) -> int:
    """What the cache of one text grows by with a token, while it is shorter than the shortest window."""
    return kv_cache_bytes(model, 2, 1, plain_bits) - kv_cache_bytes(model, 1, 1, plain_bits)


def workspace_bytes(model: Widths, context: int, batch: int, plain_bits: float) -> int:
    """The activations of the widest layer during a prefill of ``context`` tokens, and the last logits.

    Per token these are the embedding, the residual and its normed copy (3 · hidden), plus the larger of attention
    (queries, keys, values with their rotated copies, and the result: 3 · q + 3 · kv) and the feed-forward (gate, up and
    their product: 3 · inner), in the model's dtype. Attention is assumed to be fused: no matrix of tokens × tokens.
    Logits are those of each prompt's last position. benchmarks/workspace.py compares this with a resident peak.
    """
    attention = model.attention
    queries, keys = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    per_token = 3 * model.hidden + max(3 * queries + 3 * keys, 3 * model.inner)
    return math.ceil(plain_bytes(batch * (context * per_token + model.vocabulary), plain_bits))
