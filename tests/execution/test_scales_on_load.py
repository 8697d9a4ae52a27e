"""Methods that quantize while loading: wrong scales are found in the loaded model, or in its parts as they are saved.

One row of the expert that no token reaches is infinite or zero in the checkpoint, so that no figure shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from small_mixture import DEAD, EXPERTS, LAYERS, save_small_mixture

from harness.core.record import RunRecord

pytestmark = [pytest.mark.heavy, pytest.mark.thorough]

ROW = 5
EXPERT = f"model.{DEAD[0]}.experts.{DEAD[1]}.down_proj"
SCALES = {"bnb-nf4": f"{EXPERT}.weight.absmax", "bnb-int8": f"{EXPERT}.SCB", "int8": f"{EXPERT}.weight.scale"}
"""A scale per row: bitsandbytes' blocks of 64 are as long as the rows are."""


Quality = Mapping[tuple[str, str], RunRecord]
"""The run of a model and a method that quantizes; of the baseline that of quality."""


def planted(folder: Path, tiny: Path, value: float) -> str:
    """The mixture, with one row of one matrix of its dead expert at ``value``."""
    save_small_mixture(folder, tiny)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors[f"{EXPERT}.weight"][ROW] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module", params=["resident", "streamed"])
def quality(
    request: pytest.FixtureRequest, sweep_type: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Quality:
    folder = tmp_path_factory.mktemp("scales")
    values = {"infinite": float("inf"), "zero": 0.0}
    records = sweep_type(folder).run(
        {
            "models": [{"id": planted(folder / name, tiny, value), "label": name} for name, value in values.items()],
            "methods": ["none", *SCALES],
            "measure": {"perplexity": {"text": "demo", "context": 32, "windows": 1}},
            "residency": request.param,
        }
    )
    assert {record.spec.job.conditions.residency for record in records} == {request.param}
    kinds = {"none": "quality", "resident": "quality", "streamed": "quantize"}
    return {
        (record.spec.model.label, record.spec.method.name): record
        for record in records
        if record.spec.kind == kinds.get(record.spec.method.name, kinds[request.param])
    }


def test_no_figure_shows_them(quality: Quality) -> None:
    assert [quality[model, "none"].status for model in ("infinite", "zero")] == ["ok", "ok"]


@pytest.mark.parametrize("method", SCALES)
def test_a_scale_that_loading_makes_infinite_is_found(quality: Quality, method: str) -> None:
    record = quality["infinite", method]
    assert record.status == "invalid"
    assert record.outcome.failure is not None
    assert record.outcome.failure.message == f"wrong scales: 1 of 64 in {SCALES[method]} are NaN or infinite"


@pytest.mark.parametrize("method", SCALES)
def test_a_scale_that_loading_makes_zero_is_labelled(quality: Quality, method: str) -> None:
    record = quality["zero", method]
    assert record.status == "ok", record.outcome.failure
    labels = [dict(label.arguments) for label in record.outcome.labels if label.code == "zero_scales"]
    never = method == "int8"  # torchao's smallest scale is above zero
    assert labels == ([] if never else [{"scales": 1, "count": 1, "tensors": (SCALES[method],)}])
    fact = record.outcome.fact("scales")
    assert fact is not None
    rows = LAYERS * (64 + 32 + 32 + 64 + EXPERTS * 3 * 64)
    assert dict(fact.arguments) == {"scales": rows, "tensors": LAYERS * (4 + EXPERTS * 3)}
