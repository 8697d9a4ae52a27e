"""Finding a model and reading its shapes without loading it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from gguf_files import write_q8_0
from transformers import AutoConfig, AutoModelForCausalLM

from harness.errors import SourceError
from harness.models.gguf.header import read_header
from harness.models.headers import synthetic
from harness.models.scope import in_decoder
from harness.models.sources import inspect
from harness.recipe import Model

pytestmark = pytest.mark.heavy


def model(name: str, **settings: object) -> Model:
    return Model.model_validate({"id": name, **settings})


def test_shapes_agree_with_the_loaded_model(tiny: Path) -> None:
    source = inspect(model(str(tiny)), tiny)
    loaded = AutoModelForCausalLM.from_pretrained(tiny)
    matrices = {n: p for n, p in loaded.named_parameters() if in_decoder(n, p.dim())}
    assert source.matrices == {name: tuple(parameter.shape) for name, parameter in matrices.items()}
    assert source.decoder_parameters == sum(parameter.numel() for parameter in matrices.values())
    assert source.decoder_parameters + source.other_parameters == sum(p.numel() for p in loaded.parameters())
    assert source.context_length == 512


def test_the_context_of_a_multimodal_model_is_that_of_its_text_model(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "both")
    config = {"model_type": "llava", "text_config": json.loads((tiny / "config.json").read_text())}
    (folder / "config.json").write_text(json.dumps(config))
    assert inspect(model(str(folder)), folder).context_length == 512


@pytest.mark.parametrize("kind", ["llama", "mistral", "granite", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_shapes_of_a_synthetic_model_agree_with_the_built_one(tied: bool, kind: str) -> None:
    config = {
        "model_type": kind,
        "head_dim": 8,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "vocab_size": 90,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
    }
    header = synthetic(config)
    assert header is not None
    built = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert header.shapes == {name: tuple(p.shape) for name, p in built.named_parameters()}


def test_content_follows_the_bytes(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "copy")
    assert inspect(model(str(copy)), copy).ref.content == inspect(model(str(tiny)), tiny).ref.content
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert inspect(model(str(copy)), copy).ref.content != inspect(model(str(tiny)), tiny).ref.content


def test_weights_that_transformers_does_not_load_are_not_counted(tiny: Path, tmp_path: Path) -> None:
    """Some repositories hold the same weights twice, under names of their own."""
    copy = shutil.copytree(tiny, tmp_path / "copy")
    shutil.copyfile(tiny / "model.safetensors", copy / "consolidated.safetensors")
    assert inspect(model(str(copy)), copy).decoder_parameters == inspect(model(str(tiny)), tiny).decoder_parameters


def test_a_missing_shard_is_told(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "copy")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"not there: model-00002\.safetensors"):
        inspect(model(str(copy)), copy)


def test_the_dtype_is_the_checkpoints_own_unless_the_recipe_names_one(tiny: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny).bfloat16().save_pretrained(tmp_path)
    assert inspect(model(str(tmp_path)), tmp_path).ref.dtype == "bfloat16"
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")})
    )
    assert inspect(model(str(tmp_path)), tmp_path).ref.dtype == "bfloat16"
    assert inspect(model(str(tmp_path), dtype="float32"), tmp_path).ref.dtype == "float32"


def test_a_synthetic_model_is_shaped_by_the_file_it_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 1}))
    (tmp_path / "big.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    source = inspect(model("synthetic:big.json", config={"vocab_size": 10}), tmp_path)
    assert source.ref.config == {"model_type": "llama", "hidden_size": 64, "vocab_size": 10}


def test_a_relative_path_begins_at_the_recipe(tiny: Path) -> None:
    assert inspect(model(tiny.name), tiny.parent).ref.path == str(tiny)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: folder.mkdir(), "no config.json"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{}")), "no .safetensors weights"),
        (
            lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{}"), (folder / "m.bin").touch()),
            "pickled weights are not loaded",
        ),
        (
            lambda folder: (
                folder.mkdir(),
                (folder / "config.json").write_text("{}"),
                (folder / "model.safetensors").write_bytes(b"12345678junk"),
            ),
            "not a whole safetensors file",
        ),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{")), "cannot be read"),
        (lambda folder: folder.touch(), "neither a model's folder nor a .gguf file"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, make, expected: str) -> None:
    make(tmp_path / "m")
    with pytest.raises(SourceError, match=expected):
        inspect(model("m"), tmp_path)


def test_a_truncated_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(SourceError, match="cut short or damaged"):
        inspect(model("m.gguf"), tmp_path)


def test_a_gguf_tells_its_native_quantization(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_q8_0(path)
    header = read_header(path)
    assert (header.quantization, header.context_length) == ("Q8_0", 128)
    assert header.shapes == {"blk.0.attn_q.weight": (8, 64), "token_embd.weight": (8, 64)}
    assert inspect(model("m.gguf"), tmp_path).ref.dtype == "float32"


@pytest.mark.parametrize(
    ("name", "dimensions", "inside"),
    [
        ("model.layers.3.self_attn.q_proj.weight", 2, True),
        ("model.layers.3.mlp.experts.gate_up_proj", 3, True),
        ("transformer.h.0.attn.c_attn.weight", 2, True),
        ("model.layers.3.mlp.gate.weight", 2, False),
        ("model.layers.3.router.proj.weight", 2, False),
        ("model.layers.3.block_sparse_moe.router.layer.weight", 2, False),
        ("model.layers.3.mlp.gate_proj.weight", 2, True),
        ("model.layers.3.input_layernorm.weight", 1, False),
        ("model.embed_tokens.weight", 2, False),
        ("lm_head.weight", 2, False),
    ],
)
def test_the_decoder_scope(name: str, dimensions: int, inside: bool) -> None:
    assert in_decoder(name, dimensions) is inside
