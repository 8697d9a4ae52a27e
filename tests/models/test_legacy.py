"""What transformers 5 writes into a checkpoint's configurations, in the terms of transformers 4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import SourceError, UnsupportedError
from harness.models import legacy

LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def config(**entries: Any) -> dict[str, Any]:
    return {"model_type": "llama", "max_position_embeddings": 512, "dtype": "bfloat16", **entries}


def test_the_tiny_model_keeps_every_other_key_and_its_files(tiny: Path, tmp_path: Path) -> None:
    legacy.view(tiny, tmp_path / "view")
    before = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    after = json.loads((tmp_path / "view" / "config.json").read_text(encoding="utf-8"))
    assert before.pop("rope_parameters") == {"rope_theta": after.pop("rope_theta"), "rope_type": "default"}
    assert before.pop("dtype") == after.pop("torch_dtype")
    assert after == before
    made = {file.name for file in (tmp_path / "view").iterdir()}
    assert made == {file.name for file in tiny.iterdir()} - {"README.md"}
    weights = tmp_path / "view" / "model.safetensors"
    assert weights.samefile(tiny / "model.safetensors")
    tokenizer = json.loads((tmp_path / "view" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default", "rope_theta": 500000.0}, {"rope_theta": 500000.0}),
        ({"rope_theta": 500000.0, **LLAMA3}, {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
        (
            {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
            {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        ),
        (
            {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0],
                "long_factor": [2.0],
                "original_max_position_embeddings": 128,
            },
            {
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 128,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
            },
        ),
        (
            {"full_attention": {"rope_type": "default", "rope_theta": 7.0}, "sliding_attention": None},
            {"rope_theta": 7.0},
        ),
    ],
)
def test_rotary_embeddings(rope: dict[str, Any], expected: dict[str, Any]) -> None:
    plain = {"model_type": "llama", "max_position_embeddings": 512, "torch_dtype": "bfloat16"}
    assert legacy.model_config(config(rope_parameters=rope)) == plain | expected


def test_yarn_gets_the_factor_that_transformers_5_would_take() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}

    def scaling(original: int) -> Any:
        rope = {"rope_theta": 10000.0, **yarn, "original_max_position_embeddings": original}
        return legacy.model_config(config(rope_parameters=rope))["rope_scaling"]

    assert scaling(128) == {**yarn, "original_max_position_embeddings": 128}  # 512 / 128 is the factor
    assert scaling(512) == yarn  # there, 512 / 512 would be taken for it
    with pytest.raises(UnsupportedError, match="quotient"):
        scaling(256)


def test_names_that_a_model_type_has_for_itself() -> None:
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}
    made = legacy.model_config(config(model_type="gpt_neox", rope_parameters=rope))
    assert (made["rotary_emb_base"], made["rotary_pct"]) == (500.0, 0.25)


def test_rotary_embeddings_that_differ_between_layers_are_refused() -> None:
    rope = {"full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 8.0}}
    with pytest.raises(UnsupportedError, match="differ between layers"):
        legacy.model_config(config(rope_parameters=rope))


def test_configurations_inside_and_old_ones() -> None:
    inner = config(rope_parameters={"rope_type": "default", "rope_theta": 7.0})
    made = legacy.model_config({"model_type": "outer", "text_config": inner})
    assert made["text_config"]["rope_theta"] == 7.0
    assert made["text_config"]["torch_dtype"] == "bfloat16"
    old = {"model_type": "llama", "rope_theta": 9.0, "rope_scaling": None, "torch_dtype": "float16"}
    assert legacy.model_config(old) == old


def test_the_tokenizer() -> None:
    new = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True, "bos_token": "<s>"}
    assert legacy.tokenizer_config(new | {"extra_special_tokens": ["<a>"]}) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "additional_special_tokens": ["<a>"],
    }
    named = legacy.tokenizer_config(
        {"tokenizer_class": "Qwen2Tokenizer", "model_specific_special_tokens": {"i": "<i>"}}
    )
    assert named == {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {"i": "<i>"}}


def test_a_file_that_fits_two_patterns_is_linked_once(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("config.json", "tokenizer.model"):
        (tmp_path / "source" / name).write_text("{}", encoding="utf-8")
    legacy.view(tmp_path / "source", tmp_path / "view")
    assert (tmp_path / "view" / "tokenizer.model").is_symlink()


def test_restoring_keeps_the_source_and_the_quantization(tiny: Path, tmp_path: Path) -> None:
    written = {"model_type": "llama", "torch_dtype": "float16", "quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(written), encoding="utf-8")
    legacy.restore(tiny, tmp_path)
    made = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert made.pop("quantization_config") == {"quant_method": "awq"}
    assert made == json.loads((tiny / "config.json").read_text(encoding="utf-8"))


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no config\.json"):
        legacy.view(tmp_path, tmp_path / "view")
