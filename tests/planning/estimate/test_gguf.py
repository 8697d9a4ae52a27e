"""``estimate`` of GGUF files: the file's own window, and the layers that its architecture gives it to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import ACTIVE, EXPERTS, INNER, WIDTH, write_mixture
from transformers import AutoConfig, AutoModelForCausalLM

from harness.errors import SourceError
from harness.models.gguf.convert import convert
from harness.models.gguf.header import configuration
from harness.models.shapes import ModelShapes, read
from harness.planning.estimate import chosen, fits

pytestmark = pytest.mark.heavy

GEMMA_3_270M = {
    "block_count": 18,
    "context_length": 32768,
    "embedding_length": 640,
    "feed_forward_length": 2048,
    "attention.head_count": 4,
    "attention.head_count_kv": 1,
    "attention.key_length": 256,
    "attention.value_length": 256,
    "attention.sliding_window": 512,
}
"""The metadata of the published gemma-3-270m-it-Q4_K_M.gguf that decide its cache."""
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CACHE = 2 * 256 * 4
"""Bytes of a token's key and value in one of its layers, in float32."""


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a header with two tensors, enough for the widths to be seen."""

    def write(architecture: str, sizes: dict[str, Any]) -> Path:
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in sizes.items():
            if isinstance(value, list):
                writer.add_array(f"{architecture}.{key}", value)
            else:
                writer.add_uint32(f"{architecture}.{key}", value)
        keys = sizes["attention.head_count_kv"] * sizes["attention.key_length"]
        writer.add_tensor("token_embd.weight", np.zeros((64, sizes["embedding_length"]), np.float16))
        writer.add_tensor("blk.0.attn_k.weight", np.zeros((keys, sizes["embedding_length"]), np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def cache_bytes(model: ModelShapes, context: int) -> int:
    (found,) = fits.estimates(model, [chosen.parse("none")], fits.request(model, context, 1, None), "float32")
    return found.kv_bytes


def test_gemma_3_270m_keeps_all_tokens_in_three_layers_of_18(file: Callable[..., Path]) -> None:
    model = read(str(file("gemma3", GEMMA_3_270M)))
    assert cache_bytes(model, 32768) == (3 * 32768 + 15 * 512) * CACHE == 217_055_232
    assert cache_bytes(model, 400) == 18 * 400 * CACHE
    assert model.model_type == "gemma3_text"


def test_gemma_2_has_its_window_in_every_other_layer(file: Callable[..., Path]) -> None:
    model = read(str(file("gemma2", {**GEMMA_3_270M, "context_length": 8192, "attention.sliding_window": 4096})))
    assert cache_bytes(model, 8192) == (9 * 8192 + 9 * 4096) * CACHE


def test_llama_has_no_window_whatever_the_file_holds(file: Callable[..., Path]) -> None:
    """Neither llama.cpp nor transformers reads one for this architecture."""
    assert cache_bytes(read(str(file("llama", GEMMA_3_270M))), 32768) == 18 * 32768 * CACHE


@pytest.mark.parametrize("pattern", [9, [True] * 8 + [False] + [True] * 8 + [False]])
def test_the_file_s_own_pattern_counts(file: Callable[..., Path], pattern: object) -> None:
    """Newer files say it as a number of layers a round, or layer by layer."""
    model = read(str(file("gemma3", {**GEMMA_3_270M, "attention.sliding_window_pattern": pattern})))
    assert cache_bytes(model, 32768) == (2 * 32768 + 16 * 512) * CACHE


def test_an_unknown_architecture_is_refused(file: Callable[..., Path]) -> None:
    with pytest.raises(SourceError, match="it knows no model type 'llama_of_tomorrow'"):
        read(str(file("llama-of-tomorrow", GEMMA_3_270M)))


def test_layers_of_several_widths_are_refused(file: Callable[..., Path]) -> None:
    path = file("llama", {**GEMMA_3_270M, "attention.head_count_kv": 2})
    two, one = (b"head_count_kv\x04\x00\x00\x00" + bytes([count]) for count in (2, 1))
    path.write_bytes(path.read_bytes().replace(two, one))
    with pytest.raises(SourceError, match="gives keys of 512 numbers, and the configuration says 256"):
        read(str(path))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
def test_a_converted_file_is_estimated_as_its_checkpoint(kind: str, tmp_path: Path) -> None:
    """Written by qharness's own conversion: the same parameters, the same cache."""
    windows = {} if kind == "llama" else {"query_pre_attn_scalar": 8, "sliding_window": 16}
    config = AutoConfig.for_model(kind, **SIZES, **windows)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    convert(tmp_path, tmp_path / "model.gguf", "float32")
    checkpoint, converted = read(str(tmp_path / "config.json")), read(str(tmp_path / "model.gguf"))
    assert converted.attention == checkpoint.attention
    assert converted.parameters == checkpoint.parameters
    assert configuration(tmp_path / "model.gguf")["model_type"] == kind


@pytest.mark.parametrize("architecture", ["qwen3moe", "granitemoe", "phimoe"])
def test_the_experts_of_a_file_are_those_that_it_says(architecture: str, tmp_path: Path) -> None:
    """Classes of transformers call their number by other names, and have defaults for it."""
    write_mixture(tmp_path / "model.gguf", architecture)
    model = read(str(tmp_path / "model.gguf"))
    assert model.expert_parameters == 3 * EXPERTS * WIDTH * INNER
    assert model.active == model.parameters - model.expert_parameters * (EXPERTS - ACTIVE) // EXPERTS
