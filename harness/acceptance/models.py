"""The models that the checks run: a real model's layers with random weights, and a small one in a folder."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL_SEED = 0


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; by default four layers of Llama 3.1 8B."""

    vocabulary: int
    hidden: int = 4096
    inner: int = 14336
    layers: int = 4
    heads: int = 32
    kv_heads: int = 8
    context: int = 8192

    @property
    def config(self) -> dict[str, Any]:
        """As transformers names them."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
        }

    def synthetic(self, label: str, dtype: str) -> dict[str, Any]:
        """An entry of a recipe's models: seeded random weights in this shape."""
        return {"id": "synthetic:llama", "label": label, "dtype": dtype, "config": self.config}

    @property
    def layer(self) -> dict[str, tuple[int, int]]:
        """(rows, columns) of the matrices of one layer, by the name of their module."""
        keys = self.kv_heads * self.head
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of all linear matrices of the decoder."""
        return self.layers * tuple(self.layer.values())

    @property
    def parameters(self) -> int:
        """Of those matrices."""
        return sum(map(math.prod, self.matrices))

    @property
    def head(self) -> int:
        """The width of an attention head."""
        return self.hidden // self.heads

    def cache_bytes_per_token(self, bytes_per_value: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head * bytes_per_value


SMALL = Shape(vocabulary=258, hidden=256, inner=512, layers=2, heads=4, kv_heads=2, context=512)
"""Its tokens are the 256 bytes, and two that no text has."""


def write_small(folder: Path) -> None:
    """Writes a checkpoint with random float32 weights and a tokenizer of bytes, as text needs one.

    Random weights predict badly, but two computations of them agree or do not like any others.
    """
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True)
    numbers = np.random.default_rng(SMALL_SEED)

    def drawn(*shape: int) -> Any:
        return (numbers.standard_normal(shape) / math.sqrt(shape[-1])).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": drawn(SMALL.vocabulary, SMALL.hidden),
        "lm_head.weight": drawn(SMALL.vocabulary, SMALL.hidden),
        "model.norm.weight": np.ones(SMALL.hidden, np.float32),
    }
    for index in range(SMALL.layers):
        place = f"model.layers.{index}"
        tensors |= {f"{place}.{name}.weight": drawn(*shape) for name, shape in SMALL.layer.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        tensors |= {f"{place}.{name}.weight": np.ones(SMALL.hidden, np.float32) for name in norms}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        **SMALL.config,
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = Tokenizer(
        models.BPE(vocab={byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": SMALL.context}
    (folder / "tokenizer_config.json").write_text(json.dumps(own), encoding="utf-8")
