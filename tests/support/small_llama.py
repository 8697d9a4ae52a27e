"""A Llama of one small layer with seeded random weights, for tests of what is computed with any model."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama() -> LlamaForCausalLM:
    """Float32 on the CPU, ready to predict."""
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()
