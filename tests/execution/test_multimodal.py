"""A multimodal checkpoint is measured by its text model: its vision parts are named, counted and left as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from harness.api.plan import plan
from harness.core.label import codes
from harness.core.record import RunRecord
from harness.models.headers import read_directory
from harness.models.scope import in_decoder, module_name, modules
from harness.models.shapes import read
from harness.models.skeleton import tensors
from harness.recipe import load_recipe

pytestmark = pytest.mark.heavy(minutes=0.5)

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
QWEN_VISION = {
    **{"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64},
    "deepstack_visual_indexes": [0],
}
KINDS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**TEXT, "model_type": "gemma3_text", "sliding_window": 32},
        "vision_config": {**VISION, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
    },
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 32},
    },
    "mistral3": {
        "text_config": {**TEXT, "model_type": "mistral"},
        "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 16},
    },
    "qwen3_vl": {
        "text_config": {**TEXT, "model_type": "qwen3_vl_text", "rope_parameters": ROPE},
        "vision_config": QWEN_VISION,
    },
}
METHODS = [
    {"rtn": {"group_size": 32}},
    "bnb-nf4",
    "torchao-int8-dynamic",
    {"llmc-rtn": {"group_size": 32}},
    {"autoround": {"group_size": 32, "iterations": 5}},
]
MATRICES = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
"""Parameters of both text layers' linear layers."""


def checkpoint(kind: str, folder: Path, tiny: Path) -> Any:
    """A checkpoint of random weights with the tokenizer of the tiny model; returns the model."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **KINDS[kind]), dtype=torch.float32)
    model.save_pretrained(folder)
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, folder / file.name)
    return model


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[pytest.mark.slow] * (kind != "qwen3_vl")) for kind in KINDS],
)
def measured(
    request: pytest.FixtureRequest, sweep_type: Any, tmp_path_factory: pytest.TempPathFactory, tiny: Path
) -> tuple[Any, Path, dict[tuple[str, str], RunRecord]]:
    """The model, its folder and the records of a sweep over it, by kind of run and method; of two methods the speed."""
    folder = tmp_path_factory.mktemp("multimodal") / request.param
    model = checkpoint(request.param, folder, tiny)
    sweeps = sweep_type(tmp_path_factory.mktemp("sweep"))
    common = {"models": [{"id": str(folder), "dtype": "float32", "label": "both"}], "threads": 1}
    quality = {"perplexity": {"context": 64, "windows": 2}, "divergence": {}, "memory": {}}
    calibration = {"samples": 4, "length": 64}
    records = sweeps.run({**common, "methods": ["none", *METHODS], "calibration": calibration, "measure": quality})
    speed = {"throughput": {"prompt_tokens": [8], "new_tokens": 2, "iterations": 1}}
    records += sweeps.run({**common, "methods": ["none", "bnb-nf4"], "measure": speed})
    of_variants = [record for record in records if record.spec.kind in ("quantize", "quality", "performance")]
    return model, folder, {(record.spec.kind, record.spec.method.name): record for record in of_variants}


def outside(model: Any, buffers: bool = False) -> list[torch.Tensor]:
    """What is neither in the text model nor in the head, as transformers divides the model."""

    def held(module: Any) -> list[torch.Tensor]:
        return [*module.parameters(), *(module.buffers() if buffers else ())]

    text = {id(each) for part in (model.get_decoder(), model.get_output_embeddings()) for each in held(part)}
    return [each for each in held(model) if id(each) not in text]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_checkpoint_names_is_found_in_the_model(kind: str, tmp_path: Path, tiny: Path) -> None:
    """Libraries leave alone what they are told to by its name in memory, and get the other tensors by it."""
    model = checkpoint(kind, tmp_path, tiny)
    layers = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    text = {name for name, _ in model.named_modules() if ".language_model.layers." in name}
    named = modules(read_directory(tmp_path).shapes)
    assert layers & text == set(named.scope)
    assert layers - text <= set(named.untouched)
    assert set(tensors(tmp_path)) >= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    "name",
    [
        "model.connector.perceiver_resampler.layers.0.mlp.down_proj.weight",  # Idefics2
        "model.video_tower.encoder.layers.0.mlp.fc1.weight",  # Video-LLaVA
    ],
)
def test_layers_that_read_images_or_films_are_out_of_scope(name: str) -> None:
    assert not in_decoder(name, 2)


def test_the_vision_tower_of_a_published_checkpoint_has_the_name_that_it_has_in_memory() -> None:
    """llava-hf's and Google's files still say vision_model, which transformers drops while loading."""
    published = "vision_tower.vision_model.encoder.layers.0.mlp.fc1"
    assert module_name(f"{published}.weight") == "model.vision_tower.encoder.layers.0.mlp.fc1"


@pytest.mark.parametrize(
    ("method", "takes"),
    [
        ("autoround-fp8", "text models alone"),
        ("llmc-awq", "text models alone"),
        ("awq", "text models alone"),
        ("gptq", "text models and gemma3 and mistral3"),
    ],
)
def test_a_library_that_does_not_reload_such_a_model_is_refused_at_planning(
    method: str, takes: str, sweeps: Any, tmp_path: Path, tiny: Path
) -> None:
    checkpoint("llava", tmp_path / "both", tiny)
    recipe = {
        "models": [{"id": str(tmp_path / "both"), "dtype": "float32"}],
        "methods": [method],
        "calibration": {"samples": 4, "length": 64},
        "measure": {"perplexity": {"context": 64, "windows": 2}},
    }
    (made,) = (run for run in plan(load_recipe(sweeps.recipe(recipe))) if run.spec.kind == "quantize")
    assert f"{method} is known to take {takes}, and this llava model has parts" in str(made.unsupported)


@pytest.mark.thorough
def test_every_run_of_the_text_model_ends_well(measured: Any) -> None:
    failures = {key: record.outcome.failure for key, record in measured[2].items() if record.status != "ok"}
    assert not failures


@pytest.mark.thorough
def test_the_baseline_computes_what_transformers_does(measured: Any) -> None:
    """Its perplexity is that of a model of random weights, and the divergence of a method is small beside it."""
    _, _, records = measured
    losses, divergence = records["quality", "none"].find("nll").values, records["quality", "rtn"].find("kl").values
    assert sum(losses) / len(losses) == pytest.approx(6.24, abs=0.6), "ln 512"
    assert 0 < sum(divergence) / len(divergence) < 0.05


@pytest.mark.thorough
def test_coverage_counts_the_text_model_alone(measured: Any) -> None:
    model, folder, records = measured
    assert read(str(folder)).decoder == MATRICES
    assert read(str(folder)).other_inputs == sum(each.numel() for each in outside(model))
    for method in ("rtn", "bnb-nf4", "torchao-int8-dynamic", "llmc-rtn", "autoround"):
        assert records["quality", method].find("coverage").values == (1.0,)


@pytest.mark.thorough
def test_vision_parts_are_named_and_left_as_they_are(measured: Any) -> None:
    model, _, records = measured
    others = outside(model, buffers=True)
    sizes = {"parameters": sum(each.numel() for each in others), "stored_bytes": sum(each.nbytes for each in others)}
    for method in ("none", "rtn", "bnb-nf4", "torchao-int8-dynamic"):
        fact = records["quality", method].outcome.fact("other_inputs")
        assert fact.arguments == sizes
        assert "beyond_scope" not in codes(records["quality", method].outcome.labels)
