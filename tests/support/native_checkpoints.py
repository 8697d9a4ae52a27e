"""Tiny checkpoints as gpt-oss (MXFP4) and DeepSeek (FP8 in blocks) are published, quantized by independent code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE: dict[str, Any] = {
    **{"hidden_size": 128, "intermediate_size": 192, "moe_intermediate_size": 192, "num_hidden_layers": 1},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32, "num_experts_per_tok": 2},
    **{"num_local_experts": 4, "n_routed_experts": 4, "vocab_size": 128, "pad_token_id": 0},
    **{"q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "n_shared_experts": 1},
}
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
"""E2M1's magnitudes, in the order of their codes; the fourth bit is the sign."""
FORMATS = {"gpt_oss": "mxfp4", "deepseek_v3": "fp8"}
"""The quant_method of each model type."""


def mxfp4(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks, scales and the values that they mean, of (experts, outputs, inputs), by loops over blocks of 32."""
    flat = matrix.reshape(-1, 32)
    codes, scales, values = torch.zeros(flat.shape, dtype=torch.int64), [], torch.zeros(flat.shape)
    for row, block in enumerate(flat):
        exponent = math.floor(math.log2(float(block.abs().max()))) - 2  # 4 and 6 have the exponent 2
        magnitudes = torch.tensor(FP4) * 2.0**exponent
        nearest = (block.abs()[:, None] - magnitudes).abs().argmin(1)
        codes[row] = nearest + 8 * (block < 0)
        values[row] = magnitudes[nearest] * torch.where(block < 0, -1.0, 1.0)
        scales.append(exponent + 127)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    *outer, width = matrix.shape
    return (
        packed.reshape(*outer, width // 32, 16),
        torch.tensor(scales, dtype=torch.uint8).reshape(*outer, width // 32),
        values.reshape(matrix.shape),
    )


def fp8(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, a scale per 128 × 128 block (smaller at the edges), and the values that they mean."""
    rows, columns = matrix.shape
    codes, values = torch.zeros(matrix.shape, dtype=torch.float8_e4m3fn), torch.zeros(matrix.shape)
    scales = torch.zeros(-(-rows // 128), -(-columns // 128))
    for i in range(0, rows, 128):
        for j in range(0, columns, 128):
            block = matrix[i : i + 128, j : j + 128]
            scale = block.abs().max() / 448
            codes[i : i + 128, j : j + 128] = (block / scale).to(torch.float8_e4m3fn)
            values[i : i + 128, j : j + 128] = codes[i : i + 128, j : j + 128].float() * scale
            scales[i // 128, j // 128] = scale
    return codes, scales, values


def save_native(kind: str, packed: Path, dense: Path, **shape: Any) -> None:
    """A checkpoint as its publisher stores it, and the dense one of the same values, both in bfloat16."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE | shape)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(packed)
    tensors: dict[str, torch.Tensor] = load_file(packed / "model.safetensors")
    stored, meant = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if kind == "gpt_oss" and name.endswith(("gate_up_proj", "down_proj")):
            del stored[name]
            blocks, scales, values = mxfp4(tensor.float().transpose(1, 2))
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            meant[name] = values.transpose(1, 2).to(torch.bfloat16).contiguous()
        elif kind == "deepseek_v3" and ".layers." in name and tensor.ndim == 2 and not name.endswith("mlp.gate.weight"):
            codes, scales, values = fp8(tensor.float())
            stored |= {name: codes, f"{name}_scale_inv": scales}
            meant[name] = values.to(torch.bfloat16)
    save_file(meant, dense / "model.safetensors", metadata={"format": "pt"})
    save_file(stored, packed / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((packed / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(content))
    own: dict[str, Any] = (
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
        if kind == "gpt_oss"
        else {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
    )
    (packed / "config.json").write_text(json.dumps(content | {"quantization_config": own}))
