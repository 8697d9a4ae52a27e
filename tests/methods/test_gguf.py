"""llama.cpp's quantization, as far as it can be told without llama.cpp: its arithmetic and where it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_files import ACTIVE, EXPERTS, INNER, VOCABULARY, WIDTH, write_mixture

from harness.api.plan import PlanState, plan
from harness.cli.render.plan import show_plan
from harness.core.method import PartsWork
from harness.core.run import RunSpec
from harness.core.site import Machine
from harness.engines.llamacpp.engine import LLAMACPP
from harness.errors import RecipeError
from harness.methods.llamacpp.gguf import BLOCKS, FALLBACK, GGUF, MIXES, GgufParams, parts_peak
from harness.planning.peaks import LIBRARIES_BYTES
from harness.planning.plan import PlannedRun
from harness.recipe import load_recipe
from harness.stacks import MANIFEST, Stacks


@pytest.fixture
def make(sweeps, tiny: Path, tmp_path: Path):
    def make(**changes: object) -> tuple[PlannedRun, ...]:
        content: dict[str, object] = {
            "models": [{"id": str(tiny), "label": "tiny"}],
            "methods": ["none", {"rtn": {"group_size": 32}}, {"gguf": {"type": "Q8_0"}}],
            "engines": ["transformers", "llamacpp"],
            "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 2}, "divergence": {}},
        }
        recipe = load_recipe(sweeps.recipe({**content, **changes}))
        return plan(recipe, Machine("cpu", "a test machine"), Stacks(tmp_path / "stacks"))

    return make


@pytest.fixture
def pretended_stack(tmp_path: Path) -> None:
    """A stack that planning takes for made: it reads the manifest, and runs nothing."""
    folder = Stacks(tmp_path / "stacks").find("llamacpp").folder
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    made = {"versions": dict.fromkeys(LLAMACPP.packages, "1"), "compiler_flags": []}
    (folder / MANIFEST).write_text(json.dumps(made), encoding="utf-8")


def test_blocks_are_those_of_the_library() -> None:
    for name, block in BLOCKS.items():
        assert block == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.parametrize(
    ("kind", "width", "bits"),
    [("Q8_0", 64, 8.5), ("Q4_0", 576, 4.5), ("Q6_K", 512, 6.5625), ("Q6_K", 576, 8.5), ("Q4_0", 40, 16.0)],
)
def test_bits_are_those_of_the_type_that_fits_the_width(kind: str, width: int, bits: float) -> None:
    assert GGUF.bits_per_weight(GgufParams(type=kind), 32.0, width) == bits


def test_mixes_are_of_known_types_and_whole() -> None:
    for mix in MIXES.values():
        assert sum(mix.values()) == pytest.approx(1)
        assert mix.keys() <= FALLBACK.keys()


def of(runs: tuple[PlannedRun, ...], kind: str) -> list[RunSpec]:
    return [run.spec for run in runs if run.spec.kind == kind]


def test_each_variant_runs_on_the_engines_that_take_it(make: Any) -> None:
    quality = {(spec.method.name, spec.engine, spec.stack) for spec in of(make(), "quality")}
    assert quality == {
        ("none", "transformers", "main"),
        ("rtn", "transformers", "main"),
        ("none", "llamacpp", "llamacpp"),
        ("gguf", "llamacpp", "llamacpp"),
    }


@pytest.mark.usefixtures("pretended_stack")
def test_engines_share_one_reference_and_the_unquantized_model_is_converted(make: Any) -> None:
    runs = make()
    (reference,) = of(runs, "reference")
    assert (reference.engine, reference.stack) == ("transformers", "main")
    assert {spec.needs["reference"] for spec in of(runs, "quality")} == {reference.run_id}
    (convert,) = of(runs, "convert")
    (probe,) = of(runs, "probe")
    assert (convert.stack, convert.needs["probe"]) == ("llamacpp", probe.run_id)
    converted = [spec for spec in of(runs, "quality") if spec.needs.get("convert") == convert.run_id]
    assert [(spec.method.name, spec.engine) for spec in converted] == [("none", "llamacpp")]
    assert len({run.spec.run_id for run in runs}) == len(runs)


GRID = {"prompt_tokens": 16, "new_tokens": 4}
CALIBRATED = {"methods": ["none", {"gguf": {"type": "Q8_0", "imatrix": True}}], "calibration": {"samples": 4}}
TINY_BYTES = 919_808
"""Of the tiny model's weights."""


def of_kind(runs: tuple[PlannedRun, ...], kind: str) -> PlannedRun:
    (run,) = (run for run in runs if run.spec.kind == kind and run.spec.method.name != "rtn")
    return run


@pytest.fixture
def no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Python took no memory, so that the tiny model can be too large."""
    monkeypatch.setattr("harness.planning.peaks.LEAST_BYTES", 0)


@pytest.mark.usefixtures("pretended_stack", "no_python")
def test_a_model_that_does_not_fit_is_quantized_from_disk_and_what_other_stacks_read_is_still_checked(
    make: Any,
) -> None:
    runs = make(limits={"memory": 700_000}, methods=["none", {"gguf": {"type": "Q8_0"}}])
    (probe,) = (run for run in runs if run.spec.kind == "probe")
    assert probe.spec.job.conditions.residency == "streamed"
    assert probe.unsupported is None
    quantize = of_kind(runs, "quantize")
    assert quantize.spec.job.conditions.residency == "streamed"
    assert quantize.unsupported is None
    (measured,) = (run for run in runs if run.spec.kind == "quality" and run.spec.method.name == "gguf")
    assert measured.unsupported is None
    assert measured.spec.job.conditions.residency == "resident", "8 bits fit"


@pytest.mark.usefixtures("pretended_stack", "no_python")
def test_the_control_that_memory_cannot_hold_is_refused_with_its_conversion(make: Any) -> None:
    for limit, refused in ((700_000, True), (TINY_BYTES, False)):
        runs = make(limits={"memory": limit}, methods=["none"], engines=["transformers", "llamacpp"])
        on_engine = [run for run in runs if run.spec.stack == "llamacpp"]
        assert [run.spec.kind for run in on_engine] == ["convert", "quality"]
        for run in on_engine:
            assert bool(run.unsupported) == refused
            if refused:
                assert "llamacpp has all of them in memory, and limits.memory is 0.0 GiB" in str(run.unsupported)


@pytest.mark.usefixtures("pretended_stack")
def test_converting_has_a_planned_peak_that_counts_the_whole_model(make: Any) -> None:
    convert = of_kind(make(), "convert")
    assert convert.peak_bytes > LIBRARIES_BYTES + TINY_BYTES
    tight = of_kind(make(limits={"memory": LIBRARIES_BYTES}), "convert")
    assert "it may run out of memory: about 0.6 GiB of 0.6 GiB" in str(tight.note)


@pytest.mark.usefixtures("pretended_stack", "no_python")
def test_an_importance_matrix_takes_a_layer_in_memory_and_the_plan_counts_that(make: Any) -> None:
    run = of_kind(make(limits={"memory": 700_000}, **CALIBRATED), "quantize")
    assert run.unsupported is None
    assert run.spec.job.conditions.residency == "streamed"
    plain = of_kind(make(limits={"memory": 700_000}, methods=["none", {"gguf": {"type": "Q8_0"}}]), "quantize")
    assert run.peak_bytes >= plain.peak_bytes


def test_what_collecting_an_importance_matrix_takes_is_planned() -> None:
    """0.60 GB were measured of layers of 1024 × 2816 (docs/measurements/streaming.md); rows add their states."""
    layer = [(1024, 1024)] * 4 + [(2816, 1024)] * 2 + [(1024, 2816)]
    work = PartsWork(layer, 4.0, 8 * 4096 * 1024, 0, hidden=1024, vocabulary=4096, heads=16, rows=8, length=64)
    params = GgufParams(imatrix=True)
    assert 0.60e9 <= parts_peak(params, work) <= 1.25 * 0.60e9
    more = replace(work, rows=800)
    assert parts_peak(params, more) - parts_peak(params, work) == 2 * (more.states_bytes - work.states_bytes)


@pytest.mark.usefixtures("pretended_stack")
def test_a_published_file_is_as_large_as_it_is(make: Any, tmp_path: Path) -> None:
    """Only transformers makes it dense, in float32."""
    file = tmp_path / "published.gguf"
    write_mixture(file)
    size = file.stat().st_size
    beside = make(methods=["none", {"checkpoint": {"id": str(file)}}])
    (published,) = (run for run in beside if run.spec.kind == "quality" and run.spec.method.name == "checkpoint")
    assert published.weight_bytes == size
    assert published.peak_bytes > LIBRARIES_BYTES + size
    alone = make(models=[str(file)], methods=["none", {"none": {"dtype": "float16"}}], measure={"throughput": GRID})
    sizes = {(run.spec.engine, run.spec.method.label): run for run in alone if run.spec.kind == "performance"}
    attention, experts = 4 * WIDTH**2, 3 * EXPERTS * WIDTH * INNER
    parameters = VOCABULARY * WIDTH + EXPERTS * WIDTH + attention + experts
    assert sizes["llamacpp", "none"].weight_bytes == size
    assert sizes["llamacpp", "none dtype=float16"].weight_bytes == 2 * parameters, "it is converted"
    assert sizes["transformers", "none"].weight_bytes == 4 * parameters
    assert {run.size.parameters for run in sizes.values()} == {parameters}
    assert {run.size.active for run in sizes.values()} == {parameters - experts * (EXPERTS - ACTIVE) // EXPERTS}


@pytest.mark.usefixtures("pretended_stack", "no_python")
def test_streaming_concerns_no_engine_that_streams_nothing(make: Any, tmp_path: Path) -> None:
    """What memory certainly cannot hold is refused whatever the residency; other runs are as under ``auto``."""
    write_mixture(tmp_path / "published.gguf")
    methods = ["none", {"gguf": {"type": "Q8_0"}}, {"checkpoint": {"id": str(tmp_path / "published.gguf")}}]
    measure = {"perplexity": {"text": "demo", "context": 64, "windows": 2}, "throughput": GRID}
    for limits, refused in (({}, 0), ({"memory": 700_000}, 2)):
        auto, streamed = (
            {
                run.spec.run_id: run
                for run in make(methods=methods, measure=measure, residency=residency, limits=limits)
                if run.spec.engine == "llamacpp" and run.spec.job.measures_variant
            }
            for residency in ("auto", "streamed")
        )
        assert {key: run.unsupported for key, run in streamed.items()} == {
            key: run.unsupported for key, run in auto.items()
        }
        assert {run.spec.job.conditions.residency for run in streamed.values()} == {"resident"}
        assert sum(run.reason is not None for run in auto.values()) == refused, "the control"
        assert all("loaded whole: llamacpp streams nothing" in str(run.note) for run in streamed.values())
        assert not any("streams nothing" in str(run.note) for run in auto.values())


@pytest.mark.usefixtures("pretended_stack")
def test_a_printed_plan_has_notes_of_runs_that_are_of_no_variant(
    make: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show_plan(PlanState(make(residency="streamed")), as_json=False)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert "note: probe tiny: streamed from disk" in notes
    assert "note: tiny × none × llamacpp: loaded whole: llamacpp streams nothing" in notes


def test_without_its_stack_the_engine_alone_is_unsupported(make: Any) -> None:
    for run in make():
        if run.spec.stack == "llamacpp":
            assert run.unsupported == (
                "stack 'llamacpp' is missing: qharness stack create llamacpp, or run --create-stacks"
            )
        elif run.spec.kind in ("reference", "quality"):
            assert run.unsupported is None


def test_a_method_that_no_engine_of_the_recipe_runs_is_refused(make: Any) -> None:
    with pytest.raises(RecipeError, match=r"gguf type=Q8_0 runs on llamacpp; name it under 'engines'"):
        make(engines=["transformers"])
