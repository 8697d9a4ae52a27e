"""Baselines published quantized are measured from their own files: in memory, part by part, and as planned."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from native_checkpoints import FORMATS, save_native
from quality_figures import quality_figures

from harness.analysis.tradeoff import tradeoff
from harness.api.plan import plan
from harness.core.record import RunRecord
from harness.core.site import Machine
from harness.models.headers import read_directory
from harness.planning.plan import PlannedRun
from harness.recipe import load_recipe

pytestmark = pytest.mark.heavy(minutes=1)


@pytest.fixture(scope="module", params=sorted(FORMATS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def published(kind: str, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """As its publisher stores it, and dense; both with a tokenizer."""
    packed, dense = (tmp_path_factory.mktemp(f"{kind}-{name}") for name in ("packed", "dense"))
    save_native(kind, packed, dense, vocab_size=512, max_position_embeddings=512, bos_token_id=0, eos_token_id=1)
    for file in tiny.glob("tokenizer*"):
        for folder in (packed, dense):
            shutil.copy(file, folder / file.name)
    return packed, dense


def recipe(folder: Path, residency: str) -> dict[str, Any]:
    return {
        "models": [{"id": str(folder), "label": "native"}],
        "methods": ["none"],
        "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 3}, "divergence": {}, "memory": {}},
        "residency": residency,
        "device": "cpu",
    }


Swept = Mapping[str, tuple[tuple[PlannedRun, ...], tuple[RunRecord, ...]]]


@pytest.fixture(scope="module")
def swept(sweep_type: Any, published: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Swept:
    found = {}
    for residency in ("resident", "streamed"):
        sweeps = sweep_type(tmp_path_factory.mktemp(residency))
        planned = plan(load_recipe(sweeps.recipe(recipe(published[0], residency))))
        found[residency] = planned, sweeps.make(planned)
    return found


def test_every_figure_of_quality_is_the_same_number_in_memory_and_part_by_part(swept: Swept) -> None:
    (_, whole), (_, cut) = swept["resident"], swept["streamed"]
    assert [record.spec.kind for record in whole] == ["reference", "quality"]
    for one, other in zip(whole, cut, strict=True):
        assert (one.status, other.status) == ("ok", "ok"), (one.outcome.failure, other.outcome.failure)
        assert one.spec.run_id == other.spec.run_id
        assert other.spec.job.conditions.residency == "streamed"
        assert quality_figures(one) == quality_figures(other)
    quality = whole[1]
    assert {value for found in quality.outcome.measured("router_overlap") for value in found.values} == {1.0}


def test_it_is_labelled_and_what_a_cpu_makes_dense_has_a_noise_floor_in_float32(swept: Swept, kind: str) -> None:
    for _, records in swept.values():
        floors = records[0].outcome.measured("kl_noise_floor")
        assert {floor.protocol.get("dtype") for floor in floors if floor.protocol["changed"] == "dtype"} == {"float32"}
        (table,) = tradeoff(records)
        assert "natively_quantized" in {label.code for label in table.labels}
        assert records[1].spec.model.native_quantization == FORMATS[kind]


def test_its_planned_size_is_that_of_the_dense_model_which_a_cpu_makes_of_it(
    swept: Swept, published: tuple[Path, Path]
) -> None:
    """What the run counts in memory is what was planned, and the peak stays below the planned one."""
    dense = read_directory(published[1])
    parameters = sum(map(math.prod, dense.shapes.values()))
    for planned, records in swept.values():
        for run, record in zip(planned, records, strict=True):
            assert run.weight_bytes == 2 * parameters
            assert run.size is not None
            assert run.size.parameters == parameters
            assert run.peak_bytes is not None
            peaks = [max(found.values) for found in record.outcome.measured("peak_memory_bytes")]
            assert max(peaks) <= run.peak_bytes


def test_codes_that_a_gpu_multiplies_are_planned_as_their_files(
    sweeps: Any, published: tuple[Path, Path], kind: str
) -> None:
    content = recipe(published[0], "auto") | {"device": "cuda"}
    gpu = Machine("cuda", "a test GPU", capability=(9, 0), memory_bytes=2**40)
    stored = (published[0] / "model.safetensors").stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        versions = {"kernels": "0.16.1", "triton": "3.5.0"}
        patch.setattr(
            "harness.execution.local.LocalSite.version", lambda site, package, *_: versions.get(package, "1.0")
        )
        runs = plan(load_recipe(sweeps.recipe(content)), gpu)
    assert {run.weight_bytes for run in runs if run.spec.kind in ("reference", "quality")} == {stored}, kind
