"""A sweep of a small mixture of experts: what the records and the page say of its experts, and a wrong scale in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from small_mixture import DEAD, EXPERTS, LAYERS, save_small_mixture

from harness.analysis.tradeoff import tradeoff
from harness.core.record import RunRecord
from harness.report import write_report

pytestmark = [pytest.mark.heavy(minutes=1), pytest.mark.thorough]

WRONG = f"model.{DEAD[0]}.experts.{DEAD[1]}.down_proj.weight"
Records = dict[tuple[str, str, str], RunRecord]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path, sweep_type: Any) -> tuple[RunRecord, ...]:
    """The second model has one weight that is NaN, in an expert that no token reaches: its figures are all finite."""
    folder = tmp_path_factory.mktemp("mixtures")
    for name in ("sound", "damaged"):
        (folder / name).mkdir()
        save_small_mixture(folder / name, tiny)
    weights = load_file(folder / "damaged" / "model.safetensors")
    weights[WRONG][5, 7] = float("nan")
    save_file(weights, folder / "damaged" / "model.safetensors", metadata={"format": "pt"})
    return sweep_type(folder).run(  # type: ignore[no-any-return]
        {
            "models": [{"id": f"./{name}", "label": name, "dtype": "float32"} for name in ("sound", "damaged")],
            "methods": ["none", {"rtn": {"bits": 4, "group_size": 32}}, {"llmc-gptq": {"group_size": 32}}],
            "calibration": {"samples": 16, "length": 64},
            "measure": {
                "perplexity": {"text": "demo", "context": 64, "windows": 4},
                "divergence": {},
                "memory": {},
                "throughput": {"batch_sizes": [1, 2], "prompt_tokens": 8, "new_tokens": 2, "iterations": 1},
            },
        }
    )


@pytest.fixture(scope="module")
def records(made: tuple[RunRecord, ...]) -> Records:
    return {(r.spec.model.label, r.spec.kind, r.spec.method.name): r for r in made if r.spec.job.row_rank is not None}


def test_the_calibrated_variant_names_the_dead_expert_and_the_others_do_not(records: Records) -> None:
    (label,) = [
        each
        for each in records["sound", "quantize", "llmc-gptq"].outcome.labels
        if each.code == "experts_not_calibrated"
    ]
    assert label.arguments["dead"] == 1
    assert label.arguments["names"][0] == f"{DEAD[0]}: {DEAD[1]}"  # type: ignore[index]
    assert records["sound", "quantize", "rtn"].find("expert_tokens") is None


def test_the_baseline_s_routers_agree_with_the_reference_exactly_and_a_variant_s_nearly(records: Records) -> None:
    base, own = (records["sound", "quality", name] for name in ("none", "rtn"))
    overlap, kl = base.find("router_overlap"), base.find("router_kl")
    assert overlap is not None
    assert kl is not None
    assert (set(overlap.values), set(kl.values)) == ({1.0}, {0.0})
    assert len(overlap.values) == 4 * LAYERS
    theirs = own.find("router_overlap")
    assert theirs is not None
    assert 0.5 < theirs.mean < 1


def test_decoding_reads_the_active_experts_alone(records: Records) -> None:
    """Of two more tokens each layer reads at most two more experts."""
    read = {
        found.protocol["batch_size"]: found.values[0]
        for found in records["sound", "performance", "none"].outcome.measured("decode_read_bytes")
        if found.protocol["part"] == "weights"
    }
    one = 4 * 3 * 64 * 64
    stored = sum(sum(found.values) for found in records["sound", "quality", "none"].outcome.measured("stored_bytes"))
    embedding, rotary = 4 * 512 * 64, 2 * 4 * 8  # of the embedding one row is read; the rotary tables are no weights
    assert read[1] == stored - rotary - LAYERS * (EXPERTS - 2) * one - embedding + embedding / 512
    assert read[1] < read[2] <= read[1] + LAYERS * 2 * one + embedding / 512


def test_a_wrong_scale_in_an_expert_that_nothing_reaches_makes_the_run_invalid(records: Records) -> None:
    """``rtn`` itself refuses weights that are NaN."""
    assert records["damaged", "quality", "none"].status == "ok", "no token reaches the expert"
    failed = records["damaged", "quantize", "llmc-gptq"]
    assert failed.status == "invalid"
    assert failed.outcome.failure is not None
    assert "are NaN or infinite" in failed.outcome.failure.message
    assert f"experts.{DEAD[1]}.down_proj.weight_scale" in failed.outcome.failure.message
    assert records["damaged", "quantize", "rtn"].status == "unsupported"


def test_the_page_has_the_columns_and_the_heat_maps(made: tuple[RunRecord, ...], tmp_path: Path) -> None:
    (table,) = [each for each in tradeoff(list(made)) if each.model == "sound"]
    rows = {row.method: row for row in table.rows}
    audit = rows["llmc-gptq"].experts
    assert audit is not None
    assert audit.dead == 1
    assert [each.block for each in audit.blocks] == [f"layers.{layer}.mlp" for layer in range(LAYERS)]
    write_report(made, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for title in ("Calibration tokens per expert", "Experts that routers choose", "KL of the routers", "Dead experts"):
        assert title in page
