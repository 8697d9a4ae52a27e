"""Sweeps over both engines; needs the stack 'llamacpp'."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import ModuleType

import pytest
import torch
from own_tasks import choosing
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from harness.api.plan import plan
from harness.core.label import Label
from harness.core.record import RunRecord
from harness.libraries import llamacpp
from harness.models.gguf.convert import convert
from harness.recipe import load_recipe
from harness.stacks import Stacks

pytestmark = pytest.mark.heavy(minutes=1)

BLOCK_BYTES = {"Q8_0": 34 / 32}
BOTH = ["transformers", "llamacpp"]

Measure = Callable[..., tuple[RunRecord, ...]]


@pytest.fixture
def measure(llamacpp_stacks: Stacks, sweeps, tiny: Path) -> Measure:
    """Runs a recipe of the tiny model, changed as told; every run must end well."""

    def measure(**changes: object) -> tuple[RunRecord, ...]:
        models = [{"id": str(tiny), "dtype": "float32", "label": "tiny"}]
        recipe = sweeps.recipe({"models": models, "engines": BOTH, "methods": ["none"], "threads": 1, **changes})
        planned = plan(load_recipe(recipe), stacks=llamacpp_stacks)
        records = sweeps.make(planned, stacks=llamacpp_stacks)
        assert {record.status for record in records} == {"ok"}, [r.outcome.failure for r in records]
        return records

    return measure


def perplexity(record: RunRecord) -> float:
    nll = record.find("nll")
    weighted = sum(value * weight for value, weight in zip(nll.values, nll.weights, strict=True))
    return math.exp(weighted / sum(nll.weights))


def test_both_engines_read_one_model_and_are_held_against_one_reference(measure: Measure, tiny: Path) -> None:
    records = measure(
        methods=["none", {"gguf": {"type": "Q8_0", "imatrix": True}}],
        calibration={"samples": 8, "length": 64},
        measure={"perplexity": {"context": 128, "windows": 8}, "divergence": {}, "memory": {}},
    )
    quality = {(r.spec.method.name, r.spec.engine): r for r in records if r.spec.kind == "quality"}
    base, own = quality["none", "transformers"], quality["none", "llamacpp"]
    assert base.find("nll").protocol["tokens_sha256"] == own.find("nll").protocol["tokens_sha256"]
    assert perplexity(own) == pytest.approx(perplexity(base), rel=0.005)
    assert 0 < fmean(own.find("kl").values) < 1e-4, "the engine's own difference"
    rounded = quality["gguf", "llamacpp"]
    assert 1e-6 < fmean(rounded.find("kl").values) < 0.01
    assert rounded.find("coverage").values == (1.0,)
    assert Label("beyond_scope", {"scope": "decoder", "roles": ("embedding", "head")}) in rounded.outcome.labels
    linear = sum(math.prod(shape) for shape in shapes(tiny))
    stored = sum(
        measured.values[0]
        for measured in rounded.outcome.measurements
        if measured.metric == "stored_bytes" and measured.protocol.get("role") == "linear"
    )
    assert stored == linear * BLOCK_BYTES["Q8_0"]
    assert rounded.outcome.fact("layers").arguments["Q8_0 on CPU"] == 28


def test_the_experts_of_a_mixture_are_quantized(measure: Measure, tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "moe_intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
    routed = {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
    config = Qwen3MoeConfig(**sizes, **heads, **routed, initializer_range=0.1, max_position_embeddings=256)
    folder = tmp_path / "mixture"
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, folder / file.name)
    records = measure(
        models=[{"id": str(folder), "dtype": "float32", "label": "mixture"}],
        methods=["none", {"gguf": {"type": "Q6_K", "imatrix": True}}],
        calibration={"samples": 8, "length": 64},
        measure={"perplexity": {"context": 64, "windows": 4}, "divergence": {}, "memory": {}},
    )
    quality = {(r.spec.method.name, r.spec.engine): r for r in records if r.spec.kind == "quality"}
    own, rounded = quality["none", "llamacpp"], quality["gguf", "llamacpp"]
    assert fmean(own.find("kl").values) < 1e-3 < fmean(rounded.find("kl").values) < 0.1
    assert rounded.find("coverage").values == (1.0,)
    layers = rounded.outcome.fact("layers").arguments
    assert layers["Q6_K on CPU"] == 2 * (4 + 3), "and of each layer three stacks of experts"


def test_both_engines_are_asked_the_same_questions(measure: Measure, tmp_path: Path) -> None:
    records = measure(measure={"tasks": [{"name": str(choosing(tmp_path, "weather"))}]})
    base, other = (record for record in records if record.spec.kind == "task")
    scores = [record.find("task_score") for record in (base, other)]
    assert (base.spec.engine, other.spec.engine) == tuple(BOTH)
    assert scores[0].protocol == scores[1].protocol, "the hashes of prompts and targets among it"
    assert scores[0].values == scores[1].values
    assert 0 < fmean(scores[0].values) < 1


def test_a_ready_file_is_the_same_as_a_model_and_as_a_checkpoint(
    measure: Measure, llama_cpp: ModuleType, references: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    """And the same as llama.cpp's own program measures, where there is one."""
    convert(tiny, tmp_path / "plain.gguf", "float32")
    ready = tmp_path / "ready.gguf"
    llamacpp.quantize(tmp_path / "plain.gguf", ready, "Q8_0", 1, None, (), None)
    text = tmp_path / "text.txt"
    text.write_text("The boats came back before dawn. The men spoke of the weather, and of prices.\n" * 80)
    scored = {"perplexity": {"text": {"file": str(text)}, "protocol": "llama.cpp", "context": 128, "windows": 8}}
    models = [{"id": str(ready), "dtype": "float32", "label": "ready"}]
    (alone,) = (
        record
        for record in measure(models=models, engines=["llamacpp"], measure=scored)
        if record.spec.kind == "quality"
    )
    *_, beside = measure(methods=["none", {"checkpoint": {"id": str(ready)}}], measure=scored)
    assert beside.spec.method.name == "checkpoint"
    assert alone.find("nll").values == pytest.approx(beside.find("nll").values, rel=1e-6)
    binary = references.llama_binary()
    if binary is not None:
        own = references.llama_perplexity(binary, ready, text, 128, 8, settings=())
        assert perplexity(alone) == pytest.approx(own, rel=1e-3)


def test_an_artifact_is_recognized_whatever_the_cache(measure: Measure, tiny: Path, tmp_path: Path) -> None:
    """The tiny model's heads are too narrow for llama.cpp's caches of fewer bits."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=512, initializer_range=0.3)).save_pretrained(tmp_path / "wide")
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "wide" / file.name)
    records = measure(
        models=[{"id": str(tmp_path / "wide"), "dtype": "float32", "label": "wide"}],
        engines=["llamacpp"],
        methods=[{"gguf": {"type": "Q8_0"}}],
        kv_cache=["int8"],
        measure={"perplexity": {"context": 64, "windows": 2}},
    )
    packed = [record for record in records if record.spec.kind == "quality" and record.spec.kv_cache == "int8"]
    assert {record.spec.method.name for record in packed} == {"none", "gguf"}
    assert {record.outcome.fact("key_value_cache").value for record in packed} == {"Q8_0 of llama.cpp"}


def shapes(model: Path) -> list[tuple[int, ...]]:
    from harness.models.headers import read_directory
    from harness.models.scope import in_decoder

    held = read_directory(model).shapes
    return [shape for name, shape in held.items() if in_decoder(name, len(shape))]
