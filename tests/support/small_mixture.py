"""A Qwen3-MoE of two small layers with seeded random weights and one expert that no token can reach."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

EXPERTS, ACTIVE, LAYERS = 8, 2, 2
DEAD = "layers.1.mlp", 3
"""The block of the dead expert, and its number."""
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "moe_intermediate_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": EXPERTS,
    "num_experts_per_tok": ACTIVE,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def small_mixture() -> Any:
    """Float32 on the CPU, ready to predict.

    The dead expert's logit is 0, and two pairs of others have opposite logits: two of them are always greater.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **SHAPE), dtype=torch.float32).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.normal_()
        gate = model.model.layers[1].mlp.gate.weight
        gate[DEAD[1]] = 0
        gate[1], gate[4] = -gate[0], -gate[2]
    return model


def save_small_mixture(folder: Path, tokenizer: Path) -> Path:
    """Saves it with the tokenizer files of another folder."""
    small_mixture().save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder / file.name)
    return folder
