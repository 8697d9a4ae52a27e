"""gpt-oss in MXFP4 and DeepSeek in FP8 blocks, as dense models and as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from native_checkpoints import save_native
from safetensors.torch import load_file

from harness.api.plan import plan
from harness.core.engine import LoadRequest, Streaming
from harness.engines.transformers.engine import load
from harness.models.headers import read_directory
from harness.models.loading import load_transformers
from harness.models.native import dequantized
from harness.models.prepare import prepare
from harness.models.sources import inspect
from harness.recipe import Model, load_recipe

pytestmark = pytest.mark.heavy

TOKENS = torch.arange(40)[None]


@pytest.fixture(scope="module", params=["gpt_oss", "deepseek_v3"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny checkpoint as its publisher stores it, and the dense one of the same values."""
    packed, dense = (tmp_path_factory.mktemp(f"{request.param}-{name}") for name in ("packed", "dense"))
    save_native(request.param, packed, dense)
    return packed, dense


def logits(folder: Path) -> torch.Tensor:
    model = load_transformers(LoadRequest(folder, "bfloat16", "cpu"))
    with torch.inference_mode():
        return model(input_ids=TOKENS).logits.float()  # type: ignore[no-any-return]


def test_the_dense_model_has_the_values_that_the_codes_mean(published: tuple[Path, Path], tmp_path: Path) -> None:
    packed, dense = published
    source = inspect(Model(id=str(packed), native="dequantize"), Path())
    prepare(source.ref, tmp_path)
    made, meant = load_file(tmp_path / "model.safetensors"), load_file(dense / "model.safetensors")
    assert made.keys() == meant.keys()
    for name, tensor in meant.items():
        assert torch.equal(made[name], tensor), name
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(tmp_path), logits(dense))
    if not torch.cuda.is_available():
        assert torch.equal(logits(packed), logits(dense)), "as published, a CPU unpacks it while loading"


def test_it_is_read_part_by_part_as_it_is_read_whole(published: tuple[Path, Path]) -> None:
    request = LoadRequest(published[0], "bfloat16", "cpu")
    cut = load(replace(request, streaming=Streaming(states_bytes=2**20)))
    with torch.inference_mode():
        assert torch.equal(cut.logits(TOKENS).float(), logits(published[0]))


def test_the_header_of_the_dense_model_is_known_before_it_is_made(published: tuple[Path, Path]) -> None:
    packed, dense = published
    header = dequantized(read_directory(packed))
    assert header.shapes == read_directory(dense).shapes
    assert header.quantization is None


def test_both_are_labelled_and_only_the_dense_one_can_be_quantized(published: tuple[Path, Path], sweeps: Any) -> None:
    packed, _ = published
    method = "mxfp4" if "gpt_oss" in packed.name else "fp8"
    models = [
        {"id": str(packed), "label": "as-it-is"},
        {"id": str(packed), "label": "dense", "native": "dequantize"},
    ]
    recipe = {"models": models, "methods": ["none", {"rtn": {"group_size": 32}}], "measure": {"memory": {}}}
    runs = plan(load_recipe(sweeps.recipe(recipe)))
    found = {(run.spec.model.label, run.spec.method.name): run for run in runs if run.spec.kind == "performance"}
    assert f"already quantized ({method})" in str(found["as-it-is", "rtn"].unsupported)
    assert found["dense", "rtn"].unsupported is None
    assert found["as-it-is", "none"].spec.model.native_quantization == method
    assert found["dense", "none"].spec.model.native_quantization == f"{method}, dequantized"
    kinds = {(run.spec.model.label, run.spec.kind) for run in runs}
    assert ("dense", "prepare") in kinds
    assert ("as-it-is", "prepare") not in kinds
    assert len({run.spec.model.content for run in runs}) == 2


def test_what_is_not_published_quantized_cannot_be_dequantized(published: tuple[Path, Path]) -> None:
    from harness.errors import SourceError

    with pytest.raises(SourceError, match="needs a checkpoint in mxfp4 or fp8, and this holds nothing quantized"):
        inspect(Model(id=str(published[1]), native="dequantize"), Path())
