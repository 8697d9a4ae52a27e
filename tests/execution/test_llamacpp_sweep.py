"""Sweeps over both engines; needs the stack 'llamacpp'."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import pytest

from harness.execution.runner import run
from harness.planner import plan
from harness.recipe import load_recipe
from harness.record import RunRecord
from harness.stacks import Stacks

BLOCK_BYTES = {"Q8_0": 34 / 32}


def perplexity(record: RunRecord) -> float:
    nll = record.find("nll")
    weighted = sum(value * weight for value, weight in zip(nll.values, nll.weights, strict=True))
    return math.exp(weighted / sum(nll.weights))


def test_both_engines_read_one_model_and_are_held_against_one_reference(
    llamacpp_stacks: Stacks, sweeps, tiny: Path
) -> None:
    content = {
        "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
        "methods": ["none", {"gguf": {"type": "Q8_0", "imatrix": True}}],
        "engines": ["transformers", "llamacpp"],
        "calibration": {"samples": 8, "length": 64},
        "measure": {"perplexity": {"context": 128, "windows": 8}, "divergence": {}, "memory": {}},
        "threads": 1,
    }
    planned = plan(load_recipe(sweeps.recipe(content)), stacks=llamacpp_stacks)
    records = run(planned, sweeps.store, sweeps.cache, lambda event: None, llamacpp_stacks)
    assert {record.status for record in records} == {"ok"}, [r.outcome.failure for r in records]
    quality = {(r.spec.method.name, r.spec.engine): r for r in records if r.spec.kind == "quality"}
    base, own = quality["none", "transformers"], quality["none", "llamacpp"]
    assert base.find("nll").protocol["tokens_sha256"] == own.find("nll").protocol["tokens_sha256"]
    assert perplexity(own) == pytest.approx(perplexity(base), rel=0.005)
    assert 0 < fmean(own.find("kl").values) < 1e-4, "the engine's own difference"
    rounded = quality["gguf", "llamacpp"]
    assert 1e-6 < fmean(rounded.find("kl").values) < 0.01
    assert rounded.find("coverage").values == (1.0,)
    assert "quantized beyond the decoder: embedding, head" in rounded.outcome.labels
    linear = sum(math.prod(shape) for shape in shapes(tiny))
    stored = sum(
        measured.values[0]
        for measured in rounded.outcome.measurements
        if measured.metric == "stored_bytes" and measured.protocol.get("role") == "linear"
    )
    assert stored == linear * BLOCK_BYTES["Q8_0"]
    assert "28 × Q8_0 on CPU" in rounded.outcome.facts["layers"]


def shapes(model: Path) -> list[tuple[int, ...]]:
    from harness.models.headers import read_directory
    from harness.models.scope import in_decoder

    held = read_directory(model).shapes
    return [shape for name, shape in held.items() if in_decoder(name, len(shape))]
