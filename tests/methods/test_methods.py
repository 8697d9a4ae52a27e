"""Every method on a real trained model: what it stores, how much of the model it covers, what it costs in quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness import plugins as registry
from harness.core.label import Label, codes
from harness.core.method import QuantizeJob
from harness.core.record import RunRecord
from harness.methods.rtn.rtn import RTN, RtnParams

pytestmark = pytest.mark.heavy(minutes=1)


@pytest.fixture(scope="module")
def one_sweep(tmp_path_factory: pytest.TempPathFactory, tiny: Path, sweep_type) -> tuple[Any, tuple[RunRecord, ...]]:
    """Every method once on the tiny model."""
    sweeps = sweep_type(tmp_path_factory.mktemp("sweep"))
    records = sweeps.run(
        {
            "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
            "methods": [
                "none",
                "int8",
                {"rtn": {"bits": [8, 4, 3], "group_size": 32}},
                {"bnb-nf4": {"double_quant": [False, True]}},
                "bnb-fp4",
                "bnb-int8",
                {"fp8": {"format": ["e4m3", "e5m2"]}},
            ],
            "measure": {
                "perplexity": {"text": "demo", "context": 128, "windows": 16},
                "divergence": {},
                "memory": {},
            },
        }
    )
    return sweeps, records


@pytest.fixture(scope="module")
def quality(one_sweep) -> dict[str, RunRecord]:
    return {record.spec.method.label: record for record in one_sweep[1] if record.spec.kind == "quality"}


def linear_bits(record: RunRecord) -> float:
    stored = sum(record.find("stored_bytes", role="linear", part=part).values[0] for part in ("values", "scales"))  # type: ignore[union-attr]
    return 8 * stored / record.find("parameters", role="linear").values[0]  # type: ignore[union-attr]


def kl(record: RunRecord) -> float:
    values = record.find("kl").values  # type: ignore[union-attr]
    return sum(values) / len(values)


def test_every_run_of_the_sweep_ended_well(one_sweep) -> None:
    ended = {record.spec.title: (record.status, record.outcome.failure) for record in one_sweep[1]}
    assert all(status == "ok" for status, _ in ended.values()), ended


def test_the_baseline_does_not_diverge_from_itself(quality) -> None:
    assert quality["none"].find("kl").values == (0.0,) * (16 * 127)
    assert set(quality["none"].find("top1_agreement").values) == {1.0}


def test_no_library_changes_what_it_loads_from_the_cache(one_sweep) -> None:
    """A file that a library added to a checkpoint would be damage, and the checkpoint be made again each time."""
    assert list(one_sweep[0].cache.faults(read_data=True)) == []


def test_the_noise_floor_says_what_it_was_measured_on(one_sweep) -> None:
    (reference,) = [record for record in one_sweep[1] if record.spec.kind == "reference"]
    floor = reference.find("kl_noise_floor", batch_size=2)
    assert floor is not None
    assert len(floor.values) == floor.protocol["tokens_scored"] == 8 * 127
    assert floor.protocol["windows"] == 8


def test_the_whole_scope_is_quantized(quality) -> None:
    covered = {label: r.find("coverage").values[0] for label, r in quality.items() if label != "none"}
    assert covered == dict.fromkeys(covered, 1.0)
    assert quality["none"].find("coverage") is None


def test_stored_bits_agree_with_the_methods_own_arithmetic(quality) -> None:
    """Within 4%: bitsandbytes keeps a look-up table per layer, which counts on a model this small."""
    shapes = [(64, 64)] * 2 + [(32, 64)] * 2 + [(192, 64)] * 2 + [(64, 192)]
    weights = sum(rows * columns for rows, columns in shapes)
    for label, record in quality.items():
        chosen = registry.method(record.spec.method.name)
        params = chosen.params.model_validate(dict(record.spec.method.params))
        expected = (
            sum(rows * columns * chosen.bits_per_weight(params, 32.0, columns) for rows, columns in shapes) / weights
        )
        tables = 7 * (256 * 4 if "nf4" in label or "fp4" in label else 0) * 8 / weights
        assert linear_bits(record) == pytest.approx(expected, rel=0.04, abs=tables + 0.4), label


@pytest.mark.parametrize(
    ("label", "bits"),
    [
        ("none", 32),
        ("rtn bits=8 group_size=32", 8.75),
        ("rtn bits=4 group_size=32", 4.625),
        ("rtn bits=3 group_size=32", 3.59375),
    ],
)
def test_packed_weights_take_exactly_their_bits(quality, label: str, bits: float) -> None:
    """Code, and per group of 32 a float16 scale and a zero point of the code's width: b + (16 + b)/32."""
    assert linear_bits(quality[label]) == bits


def test_fewer_bits_diverge_more(quality) -> None:
    order = ["none", "int8", "bnb-nf4", "bnb-fp4", "rtn bits=3 group_size=32"]
    divergences = [kl(quality[label]) for label in order]
    assert divergences == sorted(divergences)
    assert kl(quality["rtn bits=8 group_size=32"]) < kl(quality["rtn bits=4 group_size=32"])
    assert kl(quality["fp8 format=e4m3"]) < kl(quality["fp8 format=e5m2"])


def layers(record: RunRecord) -> object:
    fact = record.outcome.fact("layers")
    return fact.arguments if fact else None


def test_layers_that_ran_are_named(quality) -> None:
    assert layers(quality["none"]) == {"Linear": 28}
    assert layers(quality["rtn bits=4 group_size=32"]) == {"PackedLinear": 28}
    assert layers(quality["bnb-nf4 double_quant"]) == {"Linear4bit of Params4bit": 28}
    assert layers(quality["int8"]) == {"Linear of Int8Tensor": 28}


def test_a_batch_dependent_method_says_so(quality) -> None:
    assert "batch_dependent" in codes(quality["bnb-int8"].outcome.labels)
    assert "batch_dependent" not in codes(quality["bnb-nf4 double_quant"].outcome.labels)


def test_nf4_on_a_cpu_is_labelled_where_bitsandbytes_unpacks_it(quality) -> None:
    from bitsandbytes.functional import has_avx512bf16

    labels = quality["bnb-nf4 double_quant"].outcome.labels
    if has_avx512bf16():
        rounded = {"layers": 28, "to": "bfloat16", "declared": "float32"}
        assert labels == (Label("activations_rounded", rounded),)
    else:
        assert codes(labels) == ("kernel_fell_back",)


def plain_rtn(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Round to nearest written out element by element, in float64 but for the stored scale."""
    out = weight.clone()
    levels = 2**bits - 1
    for r in range(weight.shape[0]):
        for g in range(0, weight.shape[1], group):
            values = weight[r, g : g + group].tolist()
            low, high = min(0.0, *values), max(0.0, *values)
            exact = torch.tensor((high - low) / levels)
            half = exact.half()
            scale = float(torch.nextafter(half, torch.tensor(torch.inf).half()) if half.float() < exact else half)
            zero = min(max(round(-low / scale), 0), levels)
            for i, value in enumerate(values):
                code = min(max(round(value / scale) + zero, 0), levels)
                out[r, g + i] = scale * (code - zero)
    return out


def test_rtn_is_the_textbook_rounding(tiny: Path, tmp_path: Path) -> None:
    RTN.enable()  # type: ignore[misc]
    params = RtnParams(bits=3, group_size=32)

    def load():
        return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)

    quantized = RTN.quantize(QuantizeJob(params, tiny, tmp_path, "cpu", "float32", 0, load))  # type: ignore[misc]
    layer = "model.layers.0.self_attn.k_proj"
    expected = plain_rtn(load().get_submodule(layer).weight.detach(), 3, 32)
    torch.testing.assert_close(quantized.get_submodule(layer).dense(torch.float32), expected, rtol=0, atol=2e-6)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "qharness-rtn"


@pytest.mark.parametrize(("group_size", "symmetric"), [("tensor", True), ("channel", False), (16, True)])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_every_rtn_checkpoint_reloads_as_it_was(tiny: Path, tmp_path: Path, bits, group_size, symmetric) -> None:
    RTN.enable()  # type: ignore[misc]
    params = RtnParams(bits=bits, group_size=group_size, symmetric=symmetric)

    def load():
        return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)

    quantized = RTN.quantize(QuantizeJob(params, tiny, tmp_path, "cpu", "float32", 0, load))  # type: ignore[misc]
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.arange(2, 34).unsqueeze(0)
    with torch.inference_mode():
        assert torch.equal(quantized(tokens).logits, reloaded(tokens).logits)


def test_the_name_ptq_means_rtn() -> None:
    assert registry.method("ptq") is registry.method("rtn")
