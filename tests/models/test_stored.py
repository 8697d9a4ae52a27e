"""What a checkpoint stores per decoder layer, whatever its library calls the tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.models.scope import matching, modules
from harness.models.stored import layers

pytestmark = pytest.mark.heavy

Q, EXPERTS = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts"
SOURCE = {
    "model.embed_tokens.weight": (100, 64),
    f"{Q}.weight": (32, 64),
    f"{Q}.bias": (32,),
    "model.layers.0.mlp.gate.weight": (4, 64),
    f"{EXPERTS}.gate_up_proj": (4, 96, 64),
    f"{EXPERTS}.down_proj": (4, 64, 48),
}


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({}))
    return folder


def test_a_gptq_layer_is_its_words_and_their_scales(tmp_path: Path) -> None:
    folder = checkpoint(
        tmp_path,
        {
            f"{Q}.qweight": torch.zeros(8, 32, dtype=torch.int32),
            f"{Q}.qzeros": torch.zeros(2, 4, dtype=torch.int32),
            f"{Q}.scales": torch.zeros(2, 32, dtype=torch.float16),
            f"{Q}.g_idx": torch.zeros(64, dtype=torch.int32),
            f"{Q}.bias": torch.zeros(32),
        },
    )
    (layer,) = layers(SOURCE, folder)
    assert (layer.name, layer.parameters, layer.quantized) == (Q, 2048, 2048)
    assert (layer.value_bytes, layer.scale_bytes) == (1024, 32 + 128 + 256)


def test_bitsandbytes_keeps_its_tables_below_the_weight(tmp_path: Path) -> None:
    tensors = {
        f"{Q}.weight": torch.zeros(1024, 1, dtype=torch.uint8),
        f"{Q}.weight.absmax": torch.zeros(32),
        f"{Q}.weight.quant_map": torch.zeros(16),
    }
    (layer,) = layers(SOURCE, checkpoint(tmp_path, tensors))
    assert (layer.quantized, layer.value_bytes, layer.scale_bytes) == (2048, 1024, 192)


def test_a_float_layer_is_not_quantized_even_with_a_scale_beside_it(tmp_path: Path) -> None:
    tensors = {f"{Q}.weight": torch.zeros(32, 64, dtype=torch.bfloat16), f"{Q}.input_scale": torch.zeros(1)}
    (layer,) = layers(SOURCE, checkpoint(tmp_path, tensors))
    assert layer.quantized == 0


def test_experts_count_together_and_those_left_dense_are_seen(tmp_path: Path) -> None:
    """The source fuses its experts; the checkpoint stores them one by one, the last expert's down_proj dense."""
    tensors = {}
    for expert in range(4):
        for name, shape in (("gate_proj", (48, 64)), ("up_proj", (48, 64)), ("down_proj", (64, 48))):
            where = f"{EXPERTS}.{expert}.{name}"
            if (expert, name) == (3, "down_proj"):
                tensors[f"{where}.weight"] = torch.zeros(shape, dtype=torch.float16)
            else:
                tensors[f"{where}.weight_packed"] = torch.zeros(shape[0], shape[1] // 8, dtype=torch.int32)
                tensors[f"{where}.weight_scale"] = torch.zeros(shape[0], 1, dtype=torch.float16)
    (layer,) = layers(SOURCE, checkpoint(tmp_path, tensors))
    assert layer.name == EXPERTS
    assert layer.parameters == 4 * (96 * 64 + 64 * 48)
    assert layer.parameters - layer.quantized == 64 * 48


def test_the_scope_leaves_head_router_and_skipped_modules_alone() -> None:
    found = modules(SOURCE, ["*.down_proj"])
    assert found.scope == (Q, *(f"{EXPERTS}.{n}.{part}_proj" for n in range(4) for part in ("gate", "up")))
    assert set(found.untouched) == {
        "model.embed_tokens",
        "model.layers.0.mlp.gate",
        f"{EXPERTS}.down_proj",
        *(f"{EXPERTS}.{n}.down_proj" for n in range(4)),
        "lm_head",
    }


def test_experts_that_a_checkpoint_lacks_are_not_counted(tmp_path: Path) -> None:
    """Of 12 matrices it holds 9, one of them in float."""
    names = [f"{EXPERTS}.{n}.{part}_proj" for n in range(3) for part in ("gate", "up", "down")]
    tensors = {f"{name}.packed": torch.zeros(48 * 64 // 2, dtype=torch.uint8) for name in names[1:]}
    tensors |= {f"{name}.scale": torch.zeros(48, dtype=torch.float16) for name in names[1:]}
    (layer,) = layers(SOURCE, checkpoint(tmp_path, tensors | {f"{names[0]}.weight": torch.zeros(48, 64)}))
    assert layer.parameters == 12 * 48 * 64
    assert layer.quantized == 8 * 48 * 64
    assert (layer.value_bytes, layer.scale_bytes) == (8 * 48 * 32 + 4 * 48 * 64, 8 * 96)


def test_a_stack_stands_for_all_experts(tmp_path: Path) -> None:
    """As gpt-oss is published: blocks and scales; a bias is not a matrix."""
    tensors = {
        f"{EXPERTS}.gate_up_proj_blocks": torch.zeros(4, 96, 2, 16, dtype=torch.uint8),
        f"{EXPERTS}.gate_up_proj_scales": torch.zeros(4, 96, 2, dtype=torch.uint8),
        f"{EXPERTS}.gate_up_proj_bias": torch.zeros(4, 96),
        f"{EXPERTS}.down_proj": torch.zeros(4, 64, 48),
    }
    (layer,) = layers(SOURCE, checkpoint(tmp_path, tensors))
    assert layer.quantized == 4 * 96 * 64
    assert (layer.value_bytes, layer.scale_bytes) == (4 * 96 * 32 + 4 * 4 * 64 * 48, 4 * 96 * 2)


def test_patterns_match_whole_names() -> None:
    assert matching("model.layers.1.mlp.down_proj", ["*.down_proj", "model.layers.1.*", "model.layers.1"]) == [
        "*.down_proj",
        "model.layers.1.*",
    ]
    assert matching("model.layers.10.mlp.down_proj", ["model.layers.1.*"]) == []
