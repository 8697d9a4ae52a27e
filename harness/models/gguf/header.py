"""The header of a GGUF file: shapes, sizes, special tokens. No weights are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.foreign import quoted, shown
from harness.errors import SourceError
from harness.models.config import MAX_LAYERS, check
from harness.models.gguf import reader
from harness.models.gguf.reader import GgufHeader
from harness.models.gguf.splits import SPLITS
from harness.models.headers import FLOAT_TYPES, Header

MODEL_TYPES = {
    **{"gemma3": "gemma3_text", "gemma4": "gemma4_text", "gptneox": "gpt_neox", "phi2": "phi", "command-r": "cohere"},
    **{"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "deepseek2": "deepseek_v2"},
}
"""transformers' names for llama.cpp's architectures, if they differ by more than a hyphen."""
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
WINDOWED = frozenset({"gemma2", "gemma3", "gemma3n", "gemma4", "cohere2", "exaone4", "gpt-oss"})
"""Architectures whose sliding window llama.cpp reads; the architecture determines which layers have it.

Files of other architectures may hold a window copied from config.json, which llama.cpp ignores.
"""
_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
NO_TOKENIZER = ("none", "no_vocab")
"""Values of ``tokenizer.ggml.model`` in a file without a tokenizer."""
NEEDED: Mapping[str, tuple[str, ...]] = {
    "llama": ("tokens", "scores", "token_type"),
    "gpt2": ("tokens", "merges"),
    "bert": ("tokens",),
    "t5": ("tokens", "scores", "token_type"),
}
"""The supported kinds of tokenizers, by ``tokenizer.ggml.model``, and what a file must hold for each.

They are sentencepiece's byte pair encoding by scores, byte pair encoding by merges, WordPiece and unigram.
"""


def read_header(file: Path) -> Header:
    """The header of a GGUF file. Raises SourceError if it is not one or is truncated."""
    found = reader.read(file)
    architecture = found.text("general.architecture")
    types = Counter(each.type for each in found.tensors if each.name.startswith("blk.") and len(each.shape) > 1)
    if not types:
        raise SourceError(f"{shown(file)}: holds no decoder layers")
    commonest = types.most_common(1)[0][0]
    return Header(
        {each.name: each.shape for each in found.tensors},
        found.size(f"{architecture}.context_length"),
        None if commonest in FLOAT_TYPES else commonest,
        "float32",
        None if architecture is None else _model_type(found, architecture),
        refusal(found),
    )


def configuration(file: Path) -> dict[str, Any]:
    """A GGUF file's model as a configuration of transformers. Raises SourceError if it has no embeddings.

    The file holds the window's size, but usually not which layers have it: that follows from the architecture,
    as it follows from transformers' class. If the file does name the layers, the file takes precedence.
    """
    found = reader.read(file)
    prefix = found.text("general.architecture")
    sizes = {key: found.sizes(f"{prefix}.{name}") for key, name in _SIZES.items()}
    held = {tensor.name: tensor for tensor in found.tensors}
    if "token_embd.weight" not in held:
        raise SourceError(f"{shown(file)}: holds no token_embd.weight")
    config = {
        "model_type": _model_type(found, str(prefix)),
        "vocab_size": max(held["token_embd.weight"].shape, default=0),
        "tie_word_embeddings": "output.weight" not in held,
        **{key: size for key, size in sizes.items() if size is not None},
        **_windows(found, prefix),
    }
    check(config, shown(file))
    return config


def _model_type(found: GgufHeader, architecture: str) -> str:
    """llama.cpp calls Mixtral's architecture llama too; it has experts."""
    if architecture == "llama" and found.size("llama.expert_count"):
        return "mixtral"
    return MODEL_TYPES.get(architecture, architecture.replace("-", "_"))


def _windows(found: GgufHeader, prefix: str | None) -> dict[str, Any]:
    """The window and, if the file gives them, the layers that have it: a flag per layer, or a pattern's length.

    As in llama.cpp, the last layer of each repetition has full attention.
    """
    window, layers = found.size(f"{prefix}.{_WINDOW}"), found.size(f"{prefix}.block_count", MAX_LAYERS)
    pattern = found.metadata.get(f"{prefix}.{_PATTERN}")
    if not window or not layers or (pattern is None and prefix not in WINDOWED):
        return {}
    if pattern is None:
        return {"sliding_window": window}
    repeated = found.size(f"{prefix}.{_PATTERN}", MAX_LAYERS) if not isinstance(pattern, list) else None
    flags = pattern if isinstance(pattern, list) else [repeated and (i + 1) % repeated for i in range(layers)]
    kinds = ["sliding_attention" if flag else "full_attention" for flag in flags[:layers]]
    return {"sliding_window": window, "layer_types": kinds}


def refusal(found: GgufHeader) -> str | None:
    """Why the open file's tokenizer cannot be reproduced to split text as llama.cpp does; None if it can.

    Returns None for a file without a tokenizer.
    """
    kind = found.text("tokenizer.ggml.model")
    if kind is None or kind in NO_TOKENIZER:
        return None
    if kind not in NEEDED:
        return f"its tokenizer is of the kind {quoted(kind)}; those read here: {', '.join(NEEDED)}. Use another file"
    for key in NEEDED[kind]:
        if f"tokenizer.ggml.{key}" not in found.metadata:
            return f"it lacks tokenizer.ggml.{key}, without which its tokenizer cannot be made; convert the model anew"
    pre = found.text("tokenizer.ggml.pre")
    if kind == "gpt2" and pre is not None and pre not in SPLITS:
        return f"its way of splitting text, {quoted(pre)} (tokenizer.ggml.pre), is not known here; use another file"
    if kind == "t5" and found.metadata.get("tokenizer.ggml.precompiled_charsmap"):
        return (
            "its tokenizer rewrites characters by a compiled map (tokenizer.ggml.precompiled_charsmap), which the "
            "tokenizers library applies otherwise than llama.cpp; use the model's transformers checkpoint"
        )
    return None
