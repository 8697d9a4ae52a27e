"""Which runs are planned to stream their model, and what is refused instead."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.api.plan import PlanState, plan
from harness.cli.render.plan import show_plan
from harness.core.method import PartsWork
from harness.core.site import Machine
from harness.execution.local import local_site
from harness.methods.gptqmodel.driver import ENDS
from harness.models import headers
from harness.models.published import READERS, STREAMED, unstreamed, unstreamed_on
from harness.models.sources import inspect
from harness.planning.peaks import ACTIVATIONS, COPIES, FREED_BYTES, HELD, LEAST_BYTES, LIBRARIES_BYTES, LOGITS
from harness.planning.plan import PlannedRun
from harness.planning.plan import plan as plan_at
from harness.plugins import method, method_names
from harness.recipe import load_recipe

Make = Callable[..., tuple[PlannedRun, ...]]
QUALITY = {"perplexity": {"text": "demo", "context": 64, "windows": 2}, "divergence": {}}
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "streaming.md"
CPU = Machine("cpu", "a test machine")
TOO_SMALL = {"memory": "1MB"}
"""The weights of the tiny model take 0.9 MB."""


@pytest.fixture(autouse=True)
def _no_python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Python took nothing, so that limits as small as the tiny model are not refused."""
    if "of_python" not in request.node.name:
        monkeypatch.setattr("harness.planning.peaks.LEAST_BYTES", 0)


def residencies(runs: tuple[PlannedRun, ...]) -> Mapping[str, str]:
    return {run.spec.title: run.spec.job.conditions.residency for run in runs}


def test_what_fits_is_loaded_whole(make: Make) -> None:
    runs = make()
    assert {run.spec.job.conditions.residency for run in runs} == {"resident"}
    assert not any(run.note for run in runs)


def test_what_does_not_fit_is_streamed_and_the_plan_says_why(make: Make) -> None:
    runs = make(limits=TOO_SMALL, measure=QUALITY, methods=["none"])
    assert set(residencies(runs).values()) == {"streamed"}
    assert all("limits.memory" in str(run.note) for run in runs)
    assert not any(run.unsupported for run in runs)


def test_speed_of_what_does_not_fit_is_refused(make: Make) -> None:
    runs = make(limits={"memory": "900KB"}, methods=["none"])
    timed = [run for run in runs if run.spec.kind == "performance"]
    assert timed
    assert all("a streamed model has quality only" in str(run.unsupported) for run in timed)
    assert all(run.spec.job.conditions.residency == "resident" for run in timed)


def test_speed_of_what_may_just_fit_is_measured_and_the_plan_says_so(make: Make) -> None:
    runs = make(limits=TOO_SMALL, methods=["none"])
    timed = [run for run in runs if run.spec.kind == "performance"]
    assert timed
    assert not any(run.unsupported for run in timed)
    assert all(run.spec.job.conditions.residency == "resident" for run in timed)
    assert all("although it may not fit" in str(run.note) for run in timed)


def test_a_variant_that_fits_is_loaded_whole_beside_a_streamed_baseline(make: Make) -> None:
    runs = make(limits=TOO_SMALL, measure=QUALITY, methods=["none", {"rtn": {"bits": 2, "group_size": 32}}])
    found = residencies(runs)
    assert {title.split()[0]: way for title, way in found.items() if "rtn" in title} == {
        "quantize": "streamed",  # it reads the unquantized model
        "quality": "resident",
    }


def test_residency_resident_streams_nothing(make: Make) -> None:
    runs = make(limits=TOO_SMALL, measure=QUALITY, residency="resident")
    assert set(residencies(runs).values()) == {"resident"}


def test_what_cannot_be_loaded_is_refused_and_streaming_is_offered(make: Make) -> None:
    runs = make(limits={"memory": "500KB"}, measure=QUALITY, residency="resident", methods=["none"])
    assert all("residency: streamed" in str(run.unsupported) for run in runs if run.spec.kind == "quality")


def test_a_streamed_run_is_told_to_need_two_layers_instead_of_all(make: Make) -> None:
    content = {"measure": {"perplexity": QUALITY["perplexity"]}, "methods": ["none"]}
    whole, cut = (make(**content, residency=each)[-1] for each in ("resident", "streamed"))
    layer = (64 * 64 * 2 + 32 * 64 * 2 + 3 * 192 * 64) * 4  # query and output, key and value, feed-forward
    matrix, activations, logits = 4 * 192 * 64, 4 * 64 * 192, 4 * 64 * 512
    beside = COPIES * matrix + ACTIVATIONS * activations
    assert whole.peak_bytes == LIBRARIES_BYTES + 919_808 + beside + LOGITS * logits
    at_once = max(2 * layer + beside, 4 * 64 * 512 + LOGITS * logits)  # the head is as wide as the embedding
    freed = beside + LOGITS * logits
    assert cut.peak_bytes == pytest.approx(LIBRARIES_BYTES + at_once + freed + HELD * 2 * 64 * 64 * 4, rel=1e-9)


def test_a_streamed_reference_needs_its_layer_in_float32_too(make: Make, billion: Mapping[str, str]) -> None:
    """It loads a model of 16 bits once more, in float32, and reads the next layer as it is stored meanwhile."""
    models = [{**billion, "dtype": "bfloat16"}]
    runs = make(models=models, methods=["none"], measure=QUALITY, residency="streamed")
    peaks = {run.spec.kind: run.peak_bytes for run in runs}
    parameters = 4 * 2048**2 + 3 * 5632 * 2048
    beside = COPIES * 4 * 5632 * 2048 + ACTIVATIONS * 4 * 64 * 5632
    freed = min(FREED_BYTES, beside + LOGITS * 4 * 64 * 16384)
    states, head = HELD * 2 * 64 * 2048 * 2, 16384 * 2048 * 2
    usual = LIBRARIES_BYTES + beside + freed + states + head
    assert peaks["reference"] == pytest.approx(usual + (4 + 2) * parameters, rel=1e-6)
    assert peaks["quality"] == pytest.approx(usual + (2 + 2) * parameters, rel=1e-6)


def test_a_layer_that_is_read_ahead_counts_as_it_is_stored(make: Make, tiny: Path) -> None:
    """The tiny model is stored in float32; the layer that computes is in bfloat16."""
    layer = 64 * 64 * 2 + 32 * 64 * 2 + 3 * 192 * 64
    short = {"perplexity": {"text": "demo", "context": 32, "windows": 2}, "divergence": {}}
    wide, narrow = (
        make(models=[{"id": str(tiny), "dtype": dtype}], methods=["none"], measure=short, residency="streamed")
        for dtype in ("float32", "bfloat16")
    )
    (whole,), (half,) = ([run.peak_bytes for run in runs if run.spec.kind == "quality"] for runs in (wide, narrow))
    states, head = HELD * 2 * 32 * 64 * 2, 512 * 64 * 2
    assert whole - half == pytest.approx(2 * layer + states + head, abs=2), "of two layers in float32 one is as before"


GPU = Machine("cuda", "a test GPU", capability=(9, 0), memory_bytes=900_000)
"""The weights of the tiny model take 0.9 MB, a little more than it has."""


@pytest.mark.parametrize("residency", ["auto", "resident", "streamed"])
def test_a_library_that_puts_the_whole_model_on_a_gpu_is_refused_where_that_does_not_fit(
    sweeps: Any, tiny: Path, residency: str
) -> None:
    content = {
        "models": [str(tiny)],
        "methods": ["none", "quanto", {"gptq": {"group_size": 32}}, {"llmc-rtn": {"group_size": 32}}],
        "measure": {"perplexity": QUALITY["perplexity"]},
        "calibration": {"samples": 4, "length": 32},
        "residency": residency,
    }
    runs = plan(load_recipe(sweeps.recipe(content)), GPU)
    found = {run.spec.method.name: run for run in quantizing(runs)}
    assert "quantizes only a model that is in memory as a whole" in str(found["quanto"].unsupported) or (
        residency == "resident" and "its weights take" in str(found["quanto"].unsupported)
    )
    assert found["gptq"].unsupported is None, "it moves one layer after the other onto the GPU"
    from_disk = found["llmc-rtn"]
    if residency == "resident":
        assert "with residency: streamed it need not be in memory as a whole" in str(from_disk.unsupported)
    else:
        assert from_disk.unsupported is None
        assert from_disk.spec.job.conditions.residency == "streamed"


BENCHMARK = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    **{"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "vocab_size": 16384},
    **{"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096},
    "tie_word_embeddings": False,
    "dtype": "float32",
}
"""The model of docs/measurements/streaming.md."""
MEASURED = {
    ("streamed", "prepare"): 0.95,
    ("streamed", "reference none"): 1.26,
    ("streamed", "quality none"): 1.45,
    ("streamed", "quantize rtn"): 1.15,
    ("streamed", "quality rtn"): 1.23,
    ("resident", "reference none"): 8.52,
    ("resident", "quantize rtn"): 7.23,
    ("resident", "quality rtn"): 1.83,
}
"""The peaks of its runs there, in GB."""
SIZED = ("reference", "quantize", "quality")


@pytest.fixture
def billion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """A recipe's entry for that model without its 5 GB of weights, as if random ones had a quality."""
    monkeypatch.setattr("harness.planning.plan._has_quality", lambda source: True)
    (tmp_path / "config.json").write_text(json.dumps(BENCHMARK))
    return {"id": f"synthetic:{tmp_path / 'config.json'}", "label": "random", "dtype": "float32"}


def test_planned_peaks_are_upper_bounds_of_those_that_were_measured(make: Make, billion: Mapping[str, str]) -> None:
    text = {"text": "demo", "context": 512, "windows": 32}
    for residency, limits in (("streamed", {"memory": "1.5GiB"}), ("resident", {})):
        runs = make(
            **{"models": [billion], "methods": ["none", {"rtn": {"bits": 4}}], "limits": limits},
            **{"measure": {"perplexity": text, "divergence": {}}, "residency": residency},
        )
        planned = {run.spec.kind: run.peak_bytes for run in runs if run.spec.kind == "prepare"}
        planned |= {f"{run.spec.kind} {run.spec.method.name}": run.peak_bytes for run in runs if run.spec.kind in SIZED}
        for (way, name), measured in MEASURED.items():
            if way == residency:
                assert measured <= planned[name] / 1e9 <= 1.3 * measured, (way, name)


MEASURED_WHOLE = {
    (512, 1408, 1, 4096): {"awq": 1.10, "autoround": 0.83},
    (1024, 2816, 16, 4096): {"gptq": 2.39, "llmc-gptq": 2.14},
    (1024, 2816, 2, 65536): {
        **{"gptq": 1.72, "autoround": 1.50, "llmc-gptq": 1.42, "llmc-awq": 1.51, "llmc-rtn": 1.31, "llmc-int8": 1.40},
    },
}
"""Peaks of libraries that quantized a whole model, in GB, by its widths, its layers and its vocabulary."""


@pytest.mark.parametrize(("hidden", "inner", "layers", "vocabulary"), MEASURED_WHOLE)
def test_planned_peaks_of_libraries_that_quantize_a_whole_model_are_upper_bounds_too(
    make: Make, billion: Mapping[str, str], tmp_path: Path, hidden: int, inner: int, layers: int, vocabulary: int
) -> None:
    shape = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    heads = {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}
    (tmp_path / "config.json").write_text(json.dumps({**BENCHMARK, **shape, **heads}))
    params: dict[str, dict[str, Any]] = {"llmc-awq": {"grid": 3}, "llmc-int8": {"smoothquant": True}}
    measured = MEASURED_WHOLE[hidden, inner, layers, vocabulary]
    runs = make(
        **{"models": [billion], "methods": [{name: params.get(name, {})} for name in measured]},
        **{"measure": QUALITY, "residency": "resident", "calibration": {"samples": 8, "length": 64}},
    )
    planned = {run.spec.method.name: run.peak_bytes for run in quantizing(runs)}
    assert planned.keys() == measured.keys()
    for name, peak in measured.items():
        assert peak <= planned[name] / 1e9 <= 1.25 * peak, name


def test_planned_peaks_of_libraries_that_quantize_while_loading_are_upper_bounds_too(
    make: Make, billion: Mapping[str, str], tmp_path: Path
) -> None:
    shape = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 2048}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 12}
    (tmp_path / "config.json").write_text(json.dumps({**BENCHMARK, **shape, **heads}))
    measured = {"bnb-nf4": 1.16, "bnb-int8": 1.07, "int8": 1.10}
    runs = make(models=[billion], methods=[*measured], measure=QUALITY, residency="resident")
    planned = {run.spec.method.name: run.peak_bytes for run in runs if run.spec.kind == "quality"}
    for name, peak in measured.items():
        assert peak <= planned[name] / 1e9 <= 1.35 * peak, name


def test_what_even_a_streamed_run_cannot_do_without_is_refused_with_that_of_python(make: Make) -> None:
    """Two layers of 205 MB, or what Python takes, in less."""
    for limit, expected in ((LEAST_BYTES, True), (LEAST_BYTES + 2**20, False)):
        runs = make(limits={"memory": limit}, measure=QUALITY, methods=["none"], residency="streamed")
        assert [bool(run.unsupported) for run in runs] == [expected] * len(runs)
    assert "of this machine" not in str(runs[0].note)
    assert "it may run out of memory: about 0.6 GiB of 0.1 GiB" in str(runs[0].note)


def test_layers_that_memory_cannot_hold_are_refused_with_their_size(make: Make, billion: Mapping[str, str]) -> None:
    content = {"models": [billion], "methods": ["none"], "measure": QUALITY}
    for residency in ("auto", "streamed"):
        runs = make(**content, limits={"memory": "200MB"}, residency=residency)
        refused = [str(run.unsupported) for run in runs if run.spec.kind in ("reference", "quality")]
        assert len(refused) == 2
        assert all("it needs at least 0.26 GiB" in each and "limits.memory is 0.19 GiB" in each for each in refused)


CALIBRATED = {"methods": [{"gptq": {"bits": 8, "group_size": 32}}, {"llmc-gptq": {"bits": 8, "group_size": 32}}]}


def quantizing(runs: tuple[PlannedRun, ...]) -> list[PlannedRun]:
    return [run for run in runs if run.spec.kind == "quantize"]


def test_what_gptqmodel_gathers_until_its_end_counts_for_the_peak(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the model had many layers: its checkpoint is larger than what a layer takes."""
    calibration = {"samples": 4, "length": 32}
    few = quantizing(make(measure=QUALITY, residency="streamed", calibration=calibration, **CALIBRATED))
    monkeypatch.setattr("harness.planning.plan._checkpoint_bytes", lambda *_: 900_000_000)
    gptq, llmc = quantizing(make(measure=QUALITY, residency="streamed", calibration=calibration, **CALIBRATED))
    assert gptq.spec.job.conditions.residency == llmc.spec.job.conditions.residency == "streamed"
    grown = [each.peak_bytes - before.peak_bytes for each, before in zip((gptq, llmc), few, strict=True)]
    assert grown[0] == pytest.approx(ENDS * 900_000_000, rel=0.02)
    assert grown[1] == pytest.approx(900_000_000, rel=0.02), "a file of its checkpoint"


def test_a_model_that_its_library_takes_only_whole_is_not_planned_from_disk(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the tiny model were of a type whose blocks auto-round replaces."""
    monkeypatch.setattr("harness.methods.autoround.driver.UNFUSES_ITSELF", frozenset({"llama"}))
    content = {"methods": [{"autoround": {"group_size": 32}}], "calibration": {"samples": 4}, "measure": QUALITY}
    (near,), (over,) = (quantizing(make(limits=limits, **content)) for limits in (TOO_SMALL, {"memory": "900KB"}))
    assert {run.spec.job.conditions.residency for run in (near, over)} == {"resident"}
    assert "loaded whole although it may not fit" in str(near.note)
    assert near.unsupported is None
    assert re.search("its weights take .*, and auto-round quantizes llama.* set residency: resident", over.unsupported)


@pytest.mark.parametrize("residency", ["resident", "streamed"])
def test_more_runs_of_a_model_read_its_shapes_and_its_configuration_no_more_often(
    sweeps: Any, tiny: Path, residency: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large mixture has 45,000 matrices, and a recipe thousands of runs."""
    read: list[str] = []

    class Counted(dict[str, tuple[int, ...]]):
        def __iter__(self) -> Iterator[str]:
            read.append("shapes")
            return super().__iter__()

        def items(self) -> Any:
            read.append("shapes")
            return super().items()

    def read_config(folder: Path) -> dict[str, Any]:
        read.append("configuration")
        return original(folder)

    original = headers.read_config
    monkeypatch.setattr(headers, "read_config", read_config)
    content = {"models": [str(tiny)], "methods": ["none", "rtn"], "residency": residency}

    def reads(texts: int) -> tuple[int, int]:
        """How many runs a plan has, and how often it reads."""
        scored = [{"text": "demo", "context": 32 + number} for number in range(texts)]
        recipe = load_recipe(sweeps.recipe({**content, "measure": {"perplexity": scored, "divergence": {}}}))
        source = inspect(recipe.models[0], tiny.parent)
        read.clear()
        counted = replace(source, matrices=Counted(source.matrices))
        planned = plan_at(recipe, replace(local_site(device="cpu"), hardware=CPU), models=[counted])
        return len(planned), len(read)

    (few, once), (many, as_often) = reads(1), reads(20)
    assert many > 10 * few
    assert once == as_often


def test_hessians_and_calibration_rows_count_for_the_peak(make: Make) -> None:
    rows = [{"samples": samples, "length": length} for samples, length in ((8, 64), (16, 64), (8, 128))]
    plans = [quantizing(make(measure=QUALITY, residency="streamed", calibration=each, **CALIBRATED)) for each in rows]
    for few, many, long in zip(*plans, strict=True):
        assert few.peak_bytes < many.peak_bytes < long.peak_bytes
    (rounded,) = quantizing(make(residency="streamed", methods=[{"llmc-rtn": {"bits": 8, "group_size": 32}}]))
    assert rounded.peak_bytes < plans[0][1].peak_bytes


def test_a_quantized_model_that_memory_cannot_hold_is_refused_where_its_library_gathers_it(make: Make) -> None:
    runs = quantizing(make(limits={"memory": "300KB"}, measure=QUALITY, calibration={"samples": 4}, **CALIBRATED))
    gptq, llmc = (run.unsupported for run in runs)
    assert re.search(r"its weights take .* limits.memory leaves them, and gptq has the quantized model in memory", gptq)
    assert llmc is None


def test_nothing_is_quantized_in_less_than_that_of_python(make: Make) -> None:
    runs = quantizing(make(limits={"memory": "300KB"}, measure=QUALITY, calibration={"samples": 4}, **CALIBRATED))
    assert all("streamed from disk it needs at least" in str(run.unsupported) for run in runs[1:])


def test_what_a_recipe_skips_is_in_the_size_of_a_checkpoint(make: Make) -> None:
    rtn = {"methods": [{"rtn": {"bits": 4, "group_size": 32}}]}
    (whole,), (part,), (none,) = (
        quantizing(make(**rtn, scope={"skip": skip})) for skip in ([], ["*.mlp.*"], ["*.mlp.*", "*.[qkv]_proj"])
    )
    assert whole.checkpoint_bytes < part.checkpoint_bytes < none.checkpoint_bytes < 919_808
    assert whole.weight_bytes < part.weight_bytes < none.weight_bytes < 919_808


def test_a_printed_plan_has_each_peak_beside_the_memory_that_there_is(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    runs = make(limits={"memory": "3GiB"}, measure=QUALITY, methods=["none"])
    assert all(run.peak_bytes > LIBRARIES_BYTES for run in runs)
    show_plan(PlanState(runs), as_json=False)
    header, *lines = capsys.readouterr().out.splitlines()
    end = header.index("peak ≈") + len("peak ≈")
    peaks = [[f"{run.peak_bytes / 1e6:.0f}", "MB"] for run in runs]
    assert [line[:end].split()[-2:] for line in lines[: len(runs)]] == peaks
    assert "memory of a run: 3.0 GiB" in lines


def test_preparing_needs_two_layers_whatever_the_residency(make: Make, tiny: Path) -> None:
    degridded = [{"id": str(tiny), "label": "tiny", "degrid": 0}]
    runs = make(measure=QUALITY, methods=["none"], models=degridded, residency="resident")
    peaks = {run.spec.kind: run.peak_bytes for run in runs}
    streamed = make(measure=QUALITY, methods=["none"], models=degridded, residency="streamed")
    assert peaks["prepare"] == next(run.peak_bytes for run in streamed if run.spec.kind == "prepare")
    assert peaks["prepare"] < peaks["reference"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kv_cache": "int8"}, "reads a text in chunks"),
        ({"methods": ["none", "quanto"]}, "is not known to load part by part"),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_the_reason(make: Make, changes: dict[str, Any], reason: str) -> None:
    runs = make(**{"measure": QUALITY, "residency": "streamed"} | changes)
    assert any(reason in str(run.unsupported) for run in runs)


def test_a_text_that_a_streamed_baseline_would_write_is_refused_with_all_that_read_it(make: Make) -> None:
    generated = {"perplexity": {"text": {"generated": {"answers": 2, "tokens": 64}}}, "divergence": {}}
    runs = make(measure=generated, residency="streamed")
    reading = [run for run in runs if run.spec.kind in ("write", "reference", "quality")]
    assert [run.spec.kind for run in reading] == ["write", "reference", *["quality"] * 3]
    assert all("a streamed baseline writes no text" in str(run.unsupported) for run in reading)


@pytest.fixture
def published(tiny: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The tiny model as if it had been published in the format of a quant_method; planning reads no weights."""

    def make(quant_method: str) -> Path:
        folder = tmp_path / quant_method
        shutil.copytree(tiny, folder)
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": quant_method, "bits": 4, "group_size": 32}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize("name", sorted(STREAMED))
def test_published_checkpoints_are_streamed(name: str, make: Make, published: Callable[[str], Path]) -> None:
    runs = make(measure=QUALITY, residency="streamed", methods=["none", {"checkpoint": {"id": str(published(name))}}])
    (run,) = (run for run in runs if run.spec.title.startswith("quality checkpoint"))
    assert run.spec.job.conditions.residency == "streamed", run.unsupported


def test_a_published_checkpoint_is_as_large_as_its_files_of_weights(
    make: Make, published: Callable[[str], Path]
) -> None:
    """Its tensors are codes, eight of GPTQ's in a number of 32 bits: counted as weights they would be half as large."""
    folder = published("gptq")
    runs = make(measure=QUALITY, methods=["none", {"checkpoint": {"id": str(folder)}}])
    (own,) = {run.weight_bytes for run in runs if run.spec.kind == "quality" and run.spec.method.name == "checkpoint"}
    assert own == sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize("name", sorted(READERS.keys() - STREAMED))
def test_a_published_checkpoint_that_cannot_be_streamed_says_why(
    name: str, make: Make, published: Callable[[str], Path]
) -> None:
    methods = ["none", {"checkpoint": {"id": str(published(name))}}]
    (run,) = (
        run for run in make(measure=QUALITY, residency="streamed", methods=methods) if "checkpoint" in run.spec.title
    )
    assert f"quantized by {name} are not known to load part by part" in str(run.unsupported)


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (
            {"packing_format": "auto_round:llm_compressor", "data_type": "mx_fp"},
            "of mx_fp in the layout auto_round:ll",
        ),
        ({"packing_format": "auto_round", "data_type": "mx_int"}, "of mx_int in the layout auto_round "),
        ({"rotation_config": {"hadamard_type": "hadamard"}}, "sets up this checkpoint's rotations"),
    ],
)
def test_what_auto_round_stores_otherwise_is_not_streamed_and_says_why(stored: dict[str, Any], reason: str) -> None:
    assert reason in str(unstreamed({"quant_method": "auto-round", **stored}, "cpu"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_checkpoint_beside_a_model_that_is_not_fetched_is_planned_without_a_peak(
    sweeps: Any, published: Callable[[str], Path], device: str
) -> None:
    """Sizes that follow from the model's shapes are not known before ``run`` has fetched it."""
    content = {
        "models": [{"id": "who/absent", "revision": "a" * 40}],
        "methods": ["none", {"checkpoint": {"id": str(published("gptq"))}}],
        "measure": QUALITY,
    }
    for residency in ("auto", "streamed"):
        recipe = load_recipe(sweeps.recipe({**content, "residency": residency}))
        runs = [
            run for run in plan(recipe, Machine(device, "a test", memory_bytes=2**34)) if run.spec.kind == "quality"
        ]
        assert [run.spec.method.name for run in runs] == ["none", "checkpoint"]
        assert [run.weight_bytes is None for run in runs] == [True, False]
        assert [run.peak_bytes for run in runs] == [None, None]


@pytest.mark.parametrize("name", ["fp8", "auto-round"])
def test_what_a_gpu_multiplies_with_other_kernels_is_streamed_on_a_cpu_only(name: str) -> None:
    assert unstreamed_on(name, "cpu") is None
    assert "only on a CPU" in str(unstreamed_on(name, "cuda"))


def test_the_page_names_the_formats_that_are_streamed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    sentence = page.partition("Published checkpoints: ")[2].partition(".")[0]
    assert set(re.findall(r"`([\w-]+)`", sentence)) == STREAMED


def test_the_page_names_the_methods_whose_results_are_streamed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    sentence = page.partition("Variants: ")[2].partition("The others")[0]
    declared = {name for name in method_names() if method(name).streams}
    assert set(re.findall(r"`([\w-]+)`", sentence)) == declared


def test_the_page_names_the_methods_that_quantize_from_disk_to_disk() -> None:
    page = PAGE.read_text(encoding="utf-8")
    sentence = page.partition("Quantizing from disk to disk: ")[2].partition("bitsandbytes")[0]
    declared = {name for name in method_names() if method(name).quantize_parts is not None}
    assert set(re.findall(r"`([\w-]+)`", sentence)) == declared


def test_residency_is_no_part_of_an_id(make: Make) -> None:
    """The results are the same bit by bit, so that a record made either way answers for both."""
    ids = [
        [(run.spec.case_id, run.spec.run_id) for run in make(measure=QUALITY, residency=residency)]
        for residency in ("auto", "resident", "streamed")
    ]
    assert ids[0] == ids[1] == ids[2]


ON_LOAD = {"methods": ["none", "bnb-nf4", "torchao-int4"]}


def test_what_quantizes_while_loading_does_so_once_from_disk_to_disk_for_all_streamed_passes(make: Make) -> None:
    runs = make(measure=QUALITY, residency="streamed", **ON_LOAD)
    (made,) = quantizing(runs)
    assert (made.spec.method.name, made.spec.job.conditions.residency) == ("bnb-nf4", "streamed")
    assert made.checkpoint_bytes > 0
    quality = {run.spec.method.name: run for run in runs if run.spec.kind == "quality"}
    assert quality["bnb-nf4"].spec.needs["quantize"] == made.spec.run_id
    reads = {name: run.spec.quantizes_on_load for name, run in quality.items()}
    assert reads == {"none": False, "bnb-nf4": False, "torchao-int4": True}, "torchao does not save the last"
    assert not any(run.unsupported for run in runs)


def test_it_is_the_same_run_whether_it_quantizes_while_loading_or_reads_what_was_saved(make: Make) -> None:
    whole, cut = (
        {run.spec.run_id: run for run in make(measure=QUALITY, residency=residency, **ON_LOAD)}
        for residency in ("resident", "streamed")
    )
    assert [cut[run_id].spec.kind for run_id in cut.keys() - whole.keys()] == ["quantize"]
    assert whole.keys() < cut.keys()


def test_what_fits_unquantized_too_is_quantized_while_it_is_loaded(make: Make) -> None:
    """The peak that is printed decides. Its codes alone would fit in less than the unquantized baseline needs."""
    (whole,) = (run for run in make(measure=QUALITY, **ON_LOAD) if run.spec.title == "quality bnb-nf4")
    assert whole.spec.job.conditions.residency == "resident"
    for limit, ways in (
        (whole.peak_bytes, {"quality bnb-nf4": "resident"}),
        (whole.peak_bytes - 1, {"quantize bnb-nf4": "streamed", "quality bnb-nf4": "streamed"}),
    ):
        runs = make(measure=QUALITY, limits={"memory": limit}, **ON_LOAD)
        found = residencies(runs)
        assert {title: way for title, way in found.items() if "bnb-nf4" in title} == ways
        assert found["quality none"] == "resident", "what quantizes nothing needs less while it is loaded"
    (note,) = {str(run.note) for run in runs if run.spec.title == "quality bnb-nf4"}
    assert "streamed from disk: quantizing it in memory takes about 0.6 GiB, and limits.memory is" in note


def test_a_library_that_needs_the_model_several_times_quantizes_from_disk_where_that_does_not_fit(make: Make) -> None:
    """Weights of 0.9 MB would fit; the peak that is printed decides."""
    content = {"methods": CALIBRATED["methods"][1:], "measure": QUALITY, "calibration": {"samples": 4, "length": 32}}
    (whole,) = quantizing(make(**content, residency="resident"))
    for limit, way in ((whole.peak_bytes, "resident"), (whole.peak_bytes - 1, "streamed")):
        (run,) = quantizing(make(**content, limits={"memory": limit}))
        assert run.spec.job.conditions.residency == way
        assert run.unsupported is None


def test_speed_of_what_may_not_fit_while_it_is_quantized_is_measured_and_the_plan_says_so(make: Make) -> None:
    runs = make(limits={"memory": "500MB"}, methods=["none", "bnb-nf4"])
    (timed, *_) = (run for run in runs if run.spec.kind == "performance" and run.spec.method.name == "bnb-nf4")
    assert timed.unsupported is None
    assert "loaded whole although it may not fit: quantizing it in memory" in str(timed.note)


def test_runs_that_are_loaded_whole_quantize_while_they_load_whatever_others_do(make: Make) -> None:
    timed = [run.spec for run in make(residency="streamed", **ON_LOAD) if run.spec.job.measures_variant]
    own = {spec.kind: "quantize" in spec.needs for spec in timed if spec.method.name == "bnb-nf4"}
    assert own == {"quality": True, "performance": False}


def test_auto_round_is_planned_with_what_one_layer_takes_while_its_roundings_are_learnt() -> None:
    """1.47 GB were measured of one layer of 1536 × 4096 in float32 (docs/measurements/streaming.md)."""
    layer = [(1536, 1536)] * 4 + [(4096, 1536)] * 2 + [(1536, 4096)]
    others_bytes = 4 * 2 * 512 * 1536
    work = PartsWork(layer, 4, others_bytes, 0, hidden=1536, vocabulary=512, rows=8, length=64)
    autoround = method("autoround")
    assert autoround.parts_peak is not None
    planned = autoround.parts_peak(autoround.params(), work)
    assert 1.47e9 <= planned <= 1.2 * 1.47e9
    assert round(planned / 1e9, 2) == 1.62
    half = replace(work, plain_bytes=2, others_bytes=others_bytes // 2)
    assert autoround.parts_peak(autoround.params(), half) == planned, "it works in float32 whatever the dtype"
