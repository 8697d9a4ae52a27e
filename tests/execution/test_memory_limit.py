"""A model of 0.6 GB under a real ``limits.memory``: loaded whole it runs out of memory, streamed it is measured.

Perplexity, divergence and 4 bits by rtn, with the very figures of the model in memory as a whole without a limit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from quality_figures import quality_figures
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from harness.api.plan import plan
from harness.core.record import RunRecord
from harness.planning.peaks import LIBRARIES_BYTES
from harness.planning.plan import PlannedRun
from harness.recipe import load_recipe
from harness.stacks import Stacks

pytestmark = [pytest.mark.heavy(minutes=1), pytest.mark.thorough]

LIMIT = "768MiB"
LAYERS = 12
CONTEXT, WINDOWS = 16, 3
SHAPE = LlamaConfig(
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=LAYERS,
    num_attention_heads=16,
    num_key_value_heads=16,
    vocab_size=512,
    max_position_embeddings=128,
    architectures=["LlamaForCausalLM"],
    dtype="float32",
)
WEIGHTS_BYTES = 4 * (LAYERS * (4 * 1024**2 + 3 * 1024 * 2816 + 2 * 1024) + 2 * 512 * 1024 + 1024)
"""More than three quarters of the limit, so that ``auto`` streams it, and less than all, so that ``resident`` tries."""


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each layer, all with the same random numbers, which are drawn once."""
    folder = tmp_path_factory.mktemp("model")
    shapes = {name: tensor.shape for name, tensor in _empty().state_dict().items()}
    drawn = torch.Generator().manual_seed(0)
    numbers = {
        shape: torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=drawn)
        for shape in dict.fromkeys(shapes.values())
    }
    files = {name: name.split(".")[2] if ".layers." in name else "rest" for name in shapes}
    for file in set(files.values()):
        held = {name: numbers[shape].clone() for name, shape in shapes.items() if files[name] == file}
        save_file(held, folder / f"model-{file}.safetensors", metadata={"format": "pt"})
    SHAPE.save_pretrained(folder)
    index = {"metadata": {}, "weight_map": {name: f"model-{file}.safetensors" for name, file in files.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for own in tiny.glob("tokenizer*"):
        shutil.copy(own, folder / own.name)
    return folder


def _empty() -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(SHAPE)


def swept(sweeps: Any, model: Path, residency: str, limit: str | None = LIMIT) -> Mapping[str, RunRecord]:
    records = sweeps.run(
        {
            "models": [{"id": str(model), "dtype": "float32", "label": "random"}],
            "methods": ["none", {"rtn": {"bits": 4, "group_size": 64}}],
            "measure": {
                "perplexity": {"text": "demo", "context": CONTEXT, "windows": WINDOWS},
                "divergence": {},
                "memory": {},
            },
            "residency": residency,
            "limits": {"memory": limit} if limit else {},
            "threads": 1,
        }
    )
    return {f"{record.spec.kind} {record.spec.method.name}": record for record in records}


@pytest.fixture(scope="module")
def limited(sweep_type: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, RunRecord]:
    return swept(sweep_type(tmp_path_factory.mktemp("limited")), model, "auto")


def test_streamed_it_is_measured_in_less_memory_than_its_weights_take(limited: Mapping[str, RunRecord]) -> None:
    assert set(limited) == {"reference none", "quality none", "quantize rtn", "quality rtn"}
    for name, record in limited.items():
        assert record.status == "ok", (name, record.outcome.failure)
        assert (record.spec.job.conditions.residency == "streamed") == (name != "quality rtn"), "4 bits fit"
        peaks = [m for m in record.outcome.measurements if m.metric == "peak_memory_bytes"]
        assert 0 < max(value for peak in peaks for value in peak.values) < WEIGHTS_BYTES


def test_its_figures_are_those_of_the_model_in_memory_as_a_whole(
    sweeps: Any, model: Path, limited: Mapping[str, RunRecord]
) -> None:
    whole = swept(sweeps, model, "resident", limit=None)
    assert set(whole) == set(limited)
    for name, record in whole.items():
        assert record.status == "ok", (name, record.outcome.failure)
        assert record.spec.job.conditions.residency == "resident"
        assert quality_figures(limited[name]) == quality_figures(record), name
    for name, metrics in {"none": {"nll", "kl"}, "rtn": {"nll", "kl", "top1_agreement"}}.items():
        assert metrics <= {metric for metric, _ in quality_figures(whole[f"quality {name}"])}
    divergence = whole["quality rtn"].find("kl")
    assert divergence is not None
    assert min(divergence.values) > 0
    assert len(divergence.values) == WINDOWS * (CONTEXT - 1)


GGUF = {
    "methods": [{"gguf": {"type": "Q8_0"}}],
    "engines": ["transformers", "llamacpp"],
    "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 1}, "memory": {}},
    "threads": 1,
}


def planned_for(sweeps: Any, stacks: Stacks, model: Path, **changes: object) -> tuple[PlannedRun, ...]:
    models = [{"id": str(model), "dtype": "float32", "label": "random"}]
    return plan(load_recipe(sweeps.recipe({"models": models, **GGUF, **changes})), stacks=stacks)


def peak(record: RunRecord) -> float:
    """The most memory of all phases."""
    return max(max(each.values) for each in record.outcome.measurements if each.metric == "peak_memory_bytes")


def test_llama_cpp_quantizes_it_from_disk(sweeps: Any, model: Path, llamacpp_stacks: Stacks) -> None:
    planned = planned_for(sweeps, llamacpp_stacks, model, limits={"memory": LIMIT})
    wanted = [run for run in planned if run.spec.kind == "probe" or "gguf" in run.spec.title]
    records = sweeps.make(wanted, stacks=llamacpp_stacks)
    assert [run.spec.kind for run in wanted] == ["probe", "quantize", "quality"]
    assert [(record.status, record.outcome.failure) for record in records] == [("ok", None)] * 3
    for run, record, residency in zip(wanted, records, ("streamed", "streamed", "resident"), strict=True):
        assert record.spec.job.conditions.residency == residency
        mapped = WEIGHTS_BYTES if run.spec.kind == "quantize" else 0  # by llama.cpp: the kernel may drop that
        assert peak(record) <= run.peak_bytes + mapped, run.spec.kind
        assert run.peak_bytes < WEIGHTS_BYTES + LIBRARIES_BYTES, "it would not be less than that of the model whole"


def test_converting_it_takes_no_more_than_planned(sweeps: Any, model: Path, llamacpp_stacks: Stacks) -> None:
    planned = planned_for(sweeps, llamacpp_stacks, model)
    wanted = [run for run in planned if run.spec.kind in ("probe", "convert")]
    records = sweeps.make(wanted, stacks=llamacpp_stacks)
    assert [(record.status, record.outcome.failure) for record in records] == [("ok", None)] * 2
    for run, record in zip(wanted, records, strict=True):
        assert run.peak_bytes / 1.35 <= peak(record) <= run.peak_bytes, run.spec.kind


def test_loaded_whole_it_runs_out_of_memory(sweeps: Any, model: Path) -> None:
    records = swept(sweeps, model, "resident")
    for name in ("reference none", "quantize rtn"):
        assert records[name].status == "out_of_memory", (name, records[name].outcome.failure)
        assert records[name].spec.job.conditions.residency == "resident"
    for name in ("quality none", "quality rtn"):
        assert records[name].status == "unsupported", "without a reference, or an artifact"
