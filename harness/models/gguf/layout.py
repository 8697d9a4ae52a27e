"""The stored size of each tensor of a GGUF file, read from the file's header."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.capability import Role, StoredTensor
from harness.core.foreign import shown
from harness.errors import SourceError
from harness.models.config import MAX_LAYERS
from harness.models.gguf import reader
from harness.models.gguf.convert import TYPES
from harness.models.gguf.reader import GgufHeader, GgufTensor
from harness.models.headers import FLOAT_TYPES
from harness.models.scope import in_decoder

CODE_BITS = {
    **{"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q2_K": 2, "Q3_K": 3, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6},
    **{"IQ4_NL": 4, "IQ4_XS": 4, "MXFP4": 4},
}
"""Bits of a weight's own code; the rest of a block are scales and minima. Other types count entirely as codes."""
_PARTS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("self_attn.q_norm", "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    *("mlp.gate", "mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.experts.down_proj", "mlp.experts.gate_up_proj"),
    *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
_WHOLE = ("model.embed_tokens", "model.norm", "lm_head")


@dataclass(frozen=True)
class GgufFile:
    """A file's header. ``cache_elements`` counts the elements of one token's keys and values in all layers."""

    architecture: str
    blocks: int
    context_length: int | None
    vocabulary: int
    cache_elements: int
    tensors: tuple[GgufTensor, ...]


def read(file: Path) -> GgufFile:
    """Raises SourceError for a file that is not GGUF, is truncated, or has an unknown version."""
    found = reader.read(file)
    name = found.text("general.architecture")
    embedding = next((tensor for tensor in found.tensors if tensor.name == "token_embd.weight"), None)
    if name is None or embedding is None or len(embedding.shape) != 2:
        raise SourceError(
            f"{shown(file)}: names no architecture, or holds no token embeddings; is it a language model?"
        )
    context = found.size(f"{name}.context_length")
    blocks = found.size(f"{name}.block_count", MAX_LAYERS) or 0
    kept = _cache_elements(found, name, blocks)
    return GgufFile(name, blocks, context or None, embedding.shape[0], kept, found.tensors)


def _cache_elements(found: GgufHeader, name: str, blocks: int) -> int:
    """0 if the file does not say how many heads it has, or how wide they are."""
    heads = found.sizes(f"{name}.attention.head_count")
    kept = found.sizes(f"{name}.attention.head_count_kv") or heads
    first = heads[0] if isinstance(heads, list) else heads
    if not kept or not first:
        return 0
    each = kept if isinstance(kept, list) else [kept] * blocks
    usual = (found.size(f"{name}.embedding_length") or 0) // first
    return sum(each) * sum(found.size(f"{name}.attention.{part}_length") or usual for part in ("key", "value"))


def ledger(file: GgufFile) -> Sequence[StoredTensor]:
    """The stored size of each tensor, under its name in transformers if that is known."""
    known = transformers_names(file.architecture, file.blocks)
    tied = not any(tensor.name == "output.weight" for tensor in file.tensors)
    entries = [_entry(tensor, known.get(tensor.name, tensor.name)) for tensor in file.tensors]
    if tied:
        shape = next(tensor.shape for tensor in file.tensors if tensor.name == "token_embd.weight")
        held = next(entry for entry in entries if entry.role == "embedding")
        size = shape[0] * shape[1]
        entries.append(StoredTensor("lm_head.weight", "head", held.storage, size, 0, 0, held.quantized, tied=True))
    return entries


def transformers_names(architecture: str, blocks: int) -> dict[str, str]:
    """transformers' names of llama.cpp's tensors, for architectures with layers like Llama's."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if arch is None:
        return {}
    mapping = get_tensor_name_map(arch, 1)  # of one block: the names of others differ in its number
    names = {name: own for name in _WHOLE if (own := mapping.get_name(name))}
    parts = {part: own for part in _PARTS if (own := mapping.get_name(f"model.layers.0.{part}"))}
    for block in range(blocks):
        names |= {f"model.layers.{block}.{part}": own.replace(".0.", f".{block}.", 1) for part, own in parts.items()}
    return {f"{own}.{kind}": f"{name}.{kind}" for name, own in names.items() for kind in ("weight", "bias")}


def _entry(tensor: GgufTensor, name: str) -> StoredTensor:
    parameters = math.prod(tensor.shape)
    quantized = tensor.type not in FLOAT_TYPES
    values = parameters * CODE_BITS[tensor.type] // 8 if tensor.type in CODE_BITS else tensor.bytes
    storage = next((dtype for dtype, name in TYPES.items() if name == tensor.type), tensor.type)
    quantized = quantized and len(tensor.shape) > 1
    return StoredTensor(name, _role(tensor), storage, parameters, values, tensor.bytes - values, quantized)


def _role(tensor: GgufTensor) -> Role:
    if tensor.name == "token_embd.weight":
        return "embedding"
    if tensor.name == "output.weight":
        return "head"
    return "linear" if in_decoder(tensor.name, len(tensor.shape)) else "other"
