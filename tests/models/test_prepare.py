"""Preparing a model part by part: the files that saving the whole model writes, and one layer in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

from harness.core.model import ModelRef
from harness.errors import InvalidRunError, UnsupportedError
from harness.models import prepare as preparing
from harness.models.degrid import draw_factors, rescale
from harness.models.gguf.convert import convert
from harness.models.prepare import prepare
from harness.models.scope import in_decoder
from harness.models.streaming import drawing
from harness.models.streaming.writing import CheckpointWriter

pytestmark = pytest.mark.heavy

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
WINDOWS = {"query_pre_attn_scalar": 8, "sliding_window": 16}
DRAWN: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "gemma2": WINDOWS,
    "gemma3_text": WINDOWS,
    "qwen3_moe": EXPERTS | {"num_experts": 4},
    "mixtral": EXPERTS | {"num_local_experts": 4},
    "deepseek_v3": EXPERTS
    | LATENT
    | {"num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    "gpt2": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def synthetic(kind: str, dtype: str = "float32") -> ModelRef:
    config = {"model_type": kind, **SIZES, **DRAWN[kind]}
    return ModelRef("m", "m", "c", "synthetic", "", dtype, config=config, seed=5)


def whole(ref: ModelRef) -> Any:
    """The model that a reference names, as transformers itself makes it."""
    if ref.kind == "gguf":
        path = Path(ref.path)
        return AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(gguf_file=path.name, dequantize=True),
            dtype=ref.dtype,
        )
    settings = dict(ref.config)
    torch.manual_seed(ref.seed)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(settings.pop("model_type"), **settings), dtype=ref.dtype
    )


def gguf_file(folder: Path, kind: str) -> ModelRef:
    model = whole(synthetic(kind))
    model.save_pretrained(folder / "source")
    convert(folder / "source", folder / "model.gguf", "float16")
    return ModelRef("m", "m", "c", "gguf", str(folder / "model.gguf"), "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", DRAWN)
def test_a_random_model_has_the_bytes_of_one_drawn_whole(kind: str, dtype: str, tmp_path: Path) -> None:
    ref = synthetic(kind, dtype)
    whole(ref).save_pretrained(tmp_path / "whole")
    prepare(ref, tmp_path / "parts")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


@pytest.mark.parametrize("kind", [kind for kind in DRAWN if kind != "gpt2"])
def test_a_random_model_is_never_whole_in_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only GPT-2's rules, which draw the weights of modules within a module, need all of them at once."""
    constructed: list[Any] = []
    construct = drawing._construct
    monkeypatch.setattr(drawing, "_construct", lambda ref: constructed.append(construct(ref)) or constructed[-1])
    prepare(synthetic(kind), tmp_path)
    [model] = constructed
    matrices = [weight for name, weight in model.named_parameters() if in_decoder(name, weight.dim())]
    assert matrices
    assert all(weight.is_meta for weight in matrices)


def test_a_random_model_that_transformers_does_not_know_is_unsupported(tmp_path: Path) -> None:
    ref = replace(synthetic("llama"), config={"model_type": "nothing"})
    with pytest.raises(UnsupportedError, match="transformers knows no such model"):
        prepare(ref, tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gemma3_text"])
def test_a_gguf_file_becomes_the_bytes_of_the_model_loaded_whole(kind: str, dtype: str, tmp_path: Path) -> None:
    ref = replace(gguf_file(tmp_path, kind), dtype=dtype)
    whole(ref).save_pretrained(tmp_path / "whole")
    prepare(ref, tmp_path / "parts")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_experts_of_a_gguf_file_are_joined_as_in_the_model_loaded_whole(tmp_path: Path) -> None:
    """transformers makes one parameter of two tensors of the file."""
    ref = mixture_file(tmp_path, inner=768)  # the default, which transformers takes for the file's
    whole(ref).save_pretrained(tmp_path / "whole")
    prepare(ref, tmp_path / "parts")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_gguf_file_that_transformers_misreads_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"its model\.layers\.0\.mlp\.experts\.\w+ is .* says"):
        prepare(mixture_file(tmp_path, inner=16), tmp_path / "out")


def mixture_file(folder: Path, inner: int) -> ModelRef:
    """A GGUF file of random weights of a small Qwen3-MoE."""
    writer = gguf.GGUFWriter(folder / "model.gguf", "qwen3moe")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_expert_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(128)
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_vocab_size(96)
    layer = {
        "attn_norm": (32,),
        "attn_q": (512, 32),
        "attn_k": (256, 32),
        "attn_v": (256, 32),
        "attn_output": (32, 512),
        "attn_q_norm": (128,),
        "attn_k_norm": (128,),
        "ffn_norm": (32,),
        "ffn_gate_inp": (4, 32),
        "ffn_gate_exps": (4, inner, 32),
        "ffn_up_exps": (4, inner, 32),
        "ffn_down_exps": (4, 32, inner),
    }
    shapes = {"token_embd": (96, 32), "output": (96, 32), "output_norm": (32,)}
    shapes |= {f"blk.{number}.{name}": shape for number in range(2) for name, shape in layer.items()}
    drawn = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", drawn.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelRef("m", "m", "c", "gguf", str(folder / "model.gguf"), "bfloat16")


def test_of_a_gguf_file_one_part_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = gguf_file(tmp_path, "qwen2")
    present: list[set[str]] = []
    write = CheckpointWriter.write

    def note(self: CheckpointWriter, tensors: dict[str, torch.Tensor]) -> None:
        held = {name for name, weight in self._model.named_parameters() if not weight.is_meta}
        present.append({name.partition(".self_attn")[0].partition(".mlp")[0] for name in held if "norm" not in name})
        write(self, tensors)

    monkeypatch.setattr(CheckpointWriter, "write", note)
    prepare(ref, tmp_path / "out")
    assert {frozenset(each) for each in present} == {
        frozenset(),
        frozenset({"model.embed_tokens.weight"}),
        frozenset({"lm_head.weight"}),
        *(frozenset({f"model.layers.{number}"}) for number in range(4)),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["synthetic", "gguf", "directory"])
def test_a_degridded_model_has_the_bytes_of_one_degridded_whole(kind: str, dtype: str, tmp_path: Path) -> None:
    ref = synthetic("qwen2", dtype) if kind == "synthetic" else replace(gguf_file(tmp_path, "llama"), dtype=dtype)
    model = whole(ref)
    if kind == "directory":
        model.save_pretrained(tmp_path / "plain")
        ref = replace(ref, kind="directory", path=str(tmp_path / "plain"))
    model = model.float()
    for layer, factors in zip(model.model.layers, draw_factors(model, 3), strict=True):
        rescale(layer, factors, model.config)
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "whole")
    made = prepare(replace(ref, degrid=3), tmp_path / "parts")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert made.degrid_kl is not None
    assert 0 < made.degrid_kl < preparing.DEGRID_KL_LIMIT


def test_degridding_that_changes_the_model_is_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "rescale", lambda layer, factors, config: layer.mlp.up_proj.weight.mul_(2))
    with pytest.raises(InvalidRunError, match="degridding changed the model"):
        prepare(replace(synthetic("llama"), degrid=3), tmp_path)
