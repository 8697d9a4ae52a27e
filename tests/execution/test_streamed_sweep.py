"""A sweep whose runs stream their model has the figures of the same sweep with the model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from quality_figures import quality_figures

from harness.analysis.tradeoff import tradeoff
from harness.api.plan import plan
from harness.core.record import RunRecord
from harness.recipe import load_recipe

pytestmark = pytest.mark.heavy

ON_LOAD = ("bnb-nf4", "torchao-int4")
"""Methods that quantize while loading. torchao does not save the int4 weights of a CPU."""
FILE_FIGURES = {"checkpoint_file_bytes", "checkpoint_bytes", "checkpoint_parameters"}
"""Of what was saved, which a run that quantizes while loading has not."""


@pytest.fixture(scope="module")
def swept(sweep_type: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[RunRecord, ...]]:
    found = {}
    for residency in ("resident", "streamed"):
        found[residency] = sweep_type(tmp_path_factory.mktemp(residency)).run(
            {
                "models": [{"id": str(tiny), "label": "tiny"}],
                "methods": ["none", {"rtn": {"bits": 4, "group_size": 32}}, *ON_LOAD],
                "measure": {
                    "perplexity": {"text": "demo", "context": 64, "windows": 4},
                    "divergence": {},
                    "memory": {},
                },
                "residency": residency,
            }
        )
    return found


def test_every_figure_of_quality_is_the_same_number(swept: Mapping[str, tuple[RunRecord, ...]]) -> None:
    whole, cut = ({record.spec.run_id: record for record in swept[residency]} for residency in ("resident", "streamed"))
    assert {record.spec.kind for record in whole.values()} >= {"reference", "quantize", "quality"}
    assert [made(cut[run_id]) for run_id in cut.keys() - whole.keys()] == [("quantize", "bnb-nf4")]
    for run_id, record in whole.items():
        assert (record.status, cut[run_id].status) == ("ok", "ok"), cut[run_id].outcome.failure
        figures = quality_figures(cut[run_id])
        assert quality_figures(record).items() <= figures.items()
        of_a_file = {metric for metric, _ in figures.keys() - quality_figures(record).keys()}
        assert of_a_file == (FILE_FIGURES if record.spec.method.name == "bnb-nf4" else set())


def test_what_was_saved_from_disk_to_disk_reloads_as_it_was_and_is_a_file_of_the_planned_size(
    swept: Mapping[str, tuple[RunRecord, ...]],
) -> None:
    (record,) = (record for record in swept["streamed"] if made(record) == ("quality", "bnb-nf4"))
    found = record.outcome.fact("reload_difference")
    assert found is not None
    assert found.arguments["kl"] == 0
    stored = record.find("checkpoint_file_bytes")
    assert stored is not None
    unquantized = 919_808
    assert 0.28 * unquantized < stored.values[0] < 0.7 * unquantized  # the embedding and the head stay as they are


def test_the_record_says_that_it_was_streamed_and_what_it_read(swept: Mapping[str, tuple[RunRecord, ...]]) -> None:
    for record in swept["streamed"]:
        assert record.spec.job.conditions.residency == "streamed"
        codes = {label.code for label in record.outcome.labels}
        each_pass = record.outcome.fact("quantized_each_pass")
        if record.spec.kind == "quantize":
            assert codes == {"quantized_in_parts"}
            continue
        assert "streamed" in codes
        again = record.spec.method.name == "torchao-int4"
        assert ("quantized_in_parts" in codes, each_pass is not None) == (again, again)
        fact = record.outcome.fact("streaming")
        assert fact is not None
        read = {name: float(str(value)) for name, value in fact.arguments.items()}
        assert read["passes"] >= 3
        assert read["bytes_read"] <= 1.3 * read["passes"] * read["checkpoint_bytes"]
    codes = {label.code for record in swept["resident"] for label in record.outcome.labels}
    assert not codes & {"streamed", "quantized_in_parts"}


def test_the_cost_of_quantizing_has_the_peak_of_a_run_from_disk_to_disk(
    swept: Mapping[str, tuple[RunRecord, ...]],
) -> None:
    found = [record for record in swept["streamed"] if record.spec.kind == "quantize"]
    assert {record.spec.method.name for record in found} == {"rtn", "bnb-nf4"}
    (table,) = tradeoff(swept["streamed"])
    rows = {row.method: row for row in table.rows}
    for record in found:
        assert record.spec.job.conditions.residency == "streamed"
        assert rows[record.spec.method.name].quantize_peak_bytes == peaks(record)["quantize"] > 0


def test_quantizing_while_loading_has_the_time_and_the_peak_of_loading_each_part_once(
    swept: Mapping[str, tuple[RunRecord, ...]],
) -> None:
    for residency, records in swept.items():
        (record,) = (record for record in records if record.spec.method.name == "torchao-int4")
        (phase,) = (phase for phase in record.outcome.phases if phase.name == "quantize_on_load")
        (table,) = tradeoff(records)
        (row,) = (row for row in table.rows if row.method == "torchao-int4")
        assert (row.quantize_s, row.quantize_peak_bytes) == (phase.wall_s, peaks(record)["quantize_on_load"])
        assert bool(row.peaks) == (residency == "resident")


def made(record: RunRecord) -> tuple[str, str]:
    return record.spec.kind, record.spec.method.name


def peaks(record: RunRecord) -> Mapping[str, float]:
    """The peak memory of a run by phase."""
    return {
        str(measurement.protocol["phase"]): max(measurement.values)
        for measurement in record.outcome.measurements
        if measurement.metric == "peak_memory_bytes"
    }


@pytest.mark.thorough
@pytest.mark.parametrize("residency", ["streamed", "resident"])
@pytest.mark.parametrize("name", ["gptq", "llmc-gptq", "llmc-rtn"])
def test_a_library_takes_no_more_than_planned_and_its_peak_is_in_the_cost(
    sweeps, tiny: Path, name: str, residency: str
) -> None:
    """What a library has loaded by then is most of it: benchmarks/quantizing_peaks.py measures larger models."""
    content = {
        "models": [{"id": str(tiny), "label": "tiny"}],
        "methods": [{name: {"bits": 4, "group_size": 32}}],
        "calibration": {"samples": 4, "length": 32},
        "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 1}, "memory": {}},
        "residency": residency,
    }
    planned = [run for run in plan(load_recipe(sweeps.recipe(content))) if not run.spec.is_baseline]
    records = sweeps.make(planned, lambda event: None)
    assert [record.status for record in records] == ["ok"] * len(planned)
    (record,) = (record for record in records if record.spec.kind == "quantize")
    (run,) = (run for run in planned if run.spec.kind == "quantize")
    assert ("quantized_in_parts" in {label.code for label in record.outcome.labels}) == (residency == "streamed")
    assert 0.5 * run.peak_bytes < max(peaks(record).values()) <= run.peak_bytes
    (table,) = tradeoff(records)
    (row,) = table.rows
    assert row.quantize_peak_bytes == peaks(record)["quantize"]


@pytest.mark.thorough
def test_what_auto_round_makes_from_disk_to_disk_is_scored_part_by_part(sweeps, tiny: Path) -> None:
    records = sweeps.run(
        {
            "models": [{"id": str(tiny), "label": "tiny"}],
            "methods": ["none", {"autoround": {"group_size": 32, "iterations": 1}}],
            "calibration": {"samples": 4, "length": 32},
            "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 1}, "divergence": {}},
            "residency": "streamed",
        }
    )
    assert [(record.status, record.outcome.failure) for record in records] == [("ok", None)] * len(records)
    (made,) = (record for record in records if record.spec.kind == "quantize")
    assert {label.code for label in made.outcome.labels} >= {"quantized_in_parts"}
    scored = [record for record in records if record.spec.kind == "quality"]
    assert len(scored) == 2
    for record in scored:
        assert "streamed" in {label.code for label in record.outcome.labels}
        assert record.spec.job.conditions.residency == "streamed"
    (table,) = tradeoff(records)
    (row,) = (row for row in table.rows if row.method == "autoround")
    assert row.kl_mean is not None
    assert 0 < row.kl_mean.value < 1
