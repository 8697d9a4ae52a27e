"""One artifact for all engines, and what an engine refuses as unsupported rows, before anything is made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml
from elsewhere import LIBRARIES, Elsewhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from harness import plugins as registry
from harness.core.site import MAIN, Machine
from harness.errors import RecipeError
from harness.models.headers import synthetic
from harness.planning.peaks import WHOLE_COPIES, ModelLoad, peak_bytes
from harness.planning.plan import PlannedRun, plan
from harness.recipe import load_recipe

CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 96,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""A Llama whose heads vLLM has a kernel for: 64 numbers."""
STACK = {"vllm": "0.32.0", "torch": "2.13.0", "transformers": "5.17.0", "tokenizers": "0.22", "safetensors": "0.6"}
LIBRARY = {**LIBRARIES, "llmcompressor": "0.14.0", "compressed-tensors": "0.19.0", "hqq": "0.2"}
AMX = Machine("cpu", "a processor with AMX", memory_bytes=2**34, instructions=frozenset({"amx_tile"}))
PLAIN = replace(AMX, hardware="a processor without AMX", instructions=frozenset({"avx2"}))
ISSUE = [
    "none",
    {"llmc-int8": {}},
    {"llmc-gptq": {"bits": 4, "group_size": 64}},
    {"llmc-awq": {"bits": 4, "group_size": 64}},
    {"llmc-fp8": {"scheme": ["dynamic", "block"]}},
    {"gptq": {"bits": 4, "group_size": 64}},
    {"vllm-online": {"scheme": "fp8_per_block"}},
]
"""What vLLM is to read."""

Make = Callable[..., list[PlannedRun]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of zeros: planning reads its shapes."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    header = synthetic(CONFIG)
    assert header is not None
    save_file(
        {name: numpy.zeros(shape, "float16") for name, shape in header.shapes.items()}, folder / "model.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def make(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("recipes")

    def make(machine: Machine = AMX, dtype: str = "bfloat16", **changes: Any) -> list[PlannedRun]:
        site = Elsewhere(machine, {MAIN: LIBRARY, "vllm": STACK})
        content = {
            "name": "engines",
            "models": [{"id": str(model), "label": "tiny", "dtype": dtype}],
            "engines": ["transformers", "vllm"],
            "methods": ISSUE,
            "calibration": {},
            "measure": {"perplexity": {"text": "demo", "context": 512, "windows": 2}, "divergence": {}},
            "repetitions": 1,
        }
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False), encoding="utf-8")
        return list(plan(load_recipe(path), site))

    return make


def rows(runs: list[PlannedRun], kind: str = "quality") -> dict[tuple[str, str], str | None]:
    """Why each row is unsupported, by method and engine; each stands once."""
    found = [(run.spec.method.label, run.spec.engine, run.unsupported) for run in runs if run.spec.kind == kind]
    assert max(Counter((label, engine) for label, engine, _ in found).values()) == 1
    return {(label, engine): reason for label, engine, reason in found}


def test_an_artifact_is_made_once_and_measured_on_both_engines(make: Make) -> None:
    both = make()
    alone = make(engines=["transformers"], methods=ISSUE[:-1])
    made = {run.spec.method.label: run.spec for run in both if run.spec.kind == "quantize"}
    assert len(made) == sum(run.spec.kind == "quantize" for run in both) == 6
    assert {spec.run_id for spec in made.values()} == {run.spec.run_id for run in alone if run.spec.kind == "quantize"}
    assert {run.spec.run_id for run in alone} <= {run.spec.run_id for run in both}, "a second engine changes no run"
    for label, spec in made.items():
        readers = [run.spec for run in both if run.spec.kind == "quality" and run.spec.method.label == label]
        assert {reader.engine for reader in readers} == {"transformers", "vllm"}
        assert {reader.needs["quantize"] for reader in readers} == {spec.run_id}
        assert len({reader.case_id for reader in readers}) == 2


def test_what_vllm_is_to_read_is_supported_where_it_has_kernels(make: Make) -> None:
    assert {key: reason for key, reason in rows(make(AMX)).items() if reason} == {}
    assert ("vllm-online scheme=fp8_per_block", "transformers") not in rows(make(AMX)), "only vLLM runs it"
    lacking = {label for (label, engine), reason in rows(make(PLAIN)).items() if reason and engine == "vllm"}
    assert lacking == {"llmc-fp8 scheme=block", "vllm-online scheme=fp8_per_block"}


def test_float32_leaves_out_what_vllm_multiplies_only_in_half(make: Make) -> None:
    found = rows(make(PLAIN, "float32"))
    read = {label for (label, engine), reason in found.items() if engine == "vllm" and not reason}
    assert read == {"none", "llmc-int8", "llmc-fp8 scheme=dynamic"}
    assert not any(reason for (_, engine), reason in found.items() if engine == "transformers")


def test_what_one_engine_refuses_is_made_for_the_other(make: Make) -> None:
    methods = ["none", {"llmc-rtn": {"bits": 8, "group_size": 64}}]
    runs = make(methods=methods)
    assert [run.unsupported for run in runs if run.spec.kind == "quantize"] == [None]
    (refused,) = [run for run in runs if run.unsupported]
    assert (refused.spec.engine, refused.spec.kind) == ("vllm", "quality")
    assert refused.unsupported == (
        "vLLM has no CPU kernel for 8-bit integers with unquantized activations; use bits: 4, or another engine"
    )
    alone = make(methods=methods, engines=["vllm"])
    assert {run.spec.kind for run in alone if run.unsupported} == {"quantize", "quality"}, "nobody would read it"


def test_formats_of_other_libraries_are_refused_by_name(make: Make) -> None:
    found = rows(make(methods=["none", {"rtn": {"group_size": 64}}, {"hqq": {"group_size": 64}}, "bnb-nf4"]))
    assert found["rtn group_size=64", "vllm"] == "vLLM reads no rtn checkpoint; measure it on an engine that does"
    assert found["hqq group_size=64", "vllm"] is not None
    assert ("bnb-nf4", "vllm") not in found, "it quantizes while transformers loads: another format"
    with pytest.raises(RecipeError, match="runs on vllm; name it under 'engines'"):
        make(engines=["transformers"], methods=["none", "vllm-online"])


def test_only_transformers_has_all_unquantized_weights_while_it_quantizes_them(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM reads and quantizes one matrix after the other."""
    loads: dict[tuple[str, str], ModelLoad] = {}

    def look(load: ModelLoad, *given: Any) -> int | None:
        loads[load.method.ref.name, load.runtime.name] = load
        return peak_bytes(load, *given)

    monkeypatch.setattr("harness.planning.plan.peak_bytes", look)
    make(methods=["none", "bnb-nf4", {"vllm-online": {"scheme": "fp8_per_channel"}}])
    loaded, quantized = loads["bnb-nf4", "transformers"], loads["vllm-online", "vllm"]
    parameters = loaded.source.decoder_parameters + loaded.source.other_parameters
    assert loaded.unquantized_bytes == WHOLE_COPIES * 2 * parameters, "in bfloat16"
    assert quantized.unquantized_bytes == 0
    assert loads["none", "transformers"].unquantized_bytes == 0


def test_overridden_layers_are_asked_for_too(make: Make) -> None:
    methods, scope = ["none", {"llmc-rtn": {"group_size": 64}}], {"overrides": {"*.down_proj": {"bits": 8}}}
    assert rows(make(methods=methods))["llmc-rtn group_size=64", "vllm"] is None
    assert "8-bit" in str(rows(make(methods=methods, scope=scope))["llmc-rtn group_size=64", "vllm"])


def test_a_context_that_the_cache_does_not_hold(make: Make) -> None:
    small = {"engines": [{"vllm": {"max_model_len": 256}}], "methods": ["none"]}
    assert "max_model_len is 256" in str(rows(make(**small))["none", "vllm"])
    tight = {"engines": [{"vllm": {"kv_cache_memory": "256KB"}}], "methods": ["none"]}
    assert "a text of 512 tokens needs" in str(rows(make(**tight))["none", "vllm"])
    grid = {"measure": {"throughput": {"prompt_tokens": [128, 2000], "new_tokens": 200}}, "methods": ["none"]}
    found = rows(make(engines=[{"vllm": {"max_model_len": 2048}}], **grid), "performance")
    assert "texts have 2200 tokens" in str(found["none", "vllm"])
    assert "max_model_len is 2048; raise it" in str(found["none", "vllm"])


def test_environment_variables_are_a_part_of_the_variant(make: Make) -> None:
    engines = [{"vllm": {"max_num_seqs": 8, "env": [None, {"VLLM_CPU_INT4_W4A8": 0}]}}]
    runs = [run.spec for run in make(engines=engines, methods=["none"]) if run.spec.kind == "quality"]
    assert [run.variant.engine_params for run in runs] == [
        {"max_num_seqs": 8},
        {"max_num_seqs": 8, "env": "VLLM_CPU_INT4_W4A8=0"},
    ]
    assert runs[1].engine_label == "vllm env=VLLM_CPU_INT4_W4A8=0 max_num_seqs=8"
    other = [{"vllm": {"env": {"VLLM_USE_DEEP_GEMM": True, "VLLM_CPU_INT4_W4A8": "0"}}}]
    (run,) = [run.spec for run in make(engines=other, methods=["none"]) if run.spec.kind == "quality"]
    assert run.variant.engine_params == {"env": "VLLM_CPU_INT4_W4A8=0 VLLM_USE_DEEP_GEMM=1"}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"VLLM_CPU_INT4_W4A": 0}, "did you mean 'VLLM_CPU_INT4_W4A8'"),
        ({"LD_PRELOAD": "x.so"}, "is no variable that a recipe may set; known: "),
        ({"VLLM_CPU_INT4_W4A8": [0, 1]}, "to try several, list mappings"),
        ({"VLLM_CPU_INT4_W4A8": {"a": 1}}, "expected 0 or 1 for VLLM_CPU_INT4_W4A8; "),
        *(({"VLLM_CPU_INT4_W4A8": value}, "expected 0 or 1") for value in ("off", "", 2, -1, 0.0, "1.0", " 1")),
        ("VLLM_CPU_INT4_W4A8", "expected 0 or 1"),
        ({"VLLM_KV_CACHE_LAYOUT": "nhd"}, "LBNHC, LBHNC, LHBNC, NHD, HND, BLHNC, BLNHC or BHLNC"),
        ({"VLLM_DISABLED_KERNELS": "a b=c"}, "expected names of kernel classes with commas between them"),
        ({"VLLM_DISABLED_KERNELS": "A,,B"}, "expected names of kernel classes"),
        ({"VLLM_BATCH_INVARIANT": 1}, "is no variable that a recipe may set"),
        ({"VLLM_MARLIN_INPUT_DTYPE": "int8"}, "is no variable that a recipe may set"),
        ({}, "expected a mapping of environment variables to values"),
        (3, "expected a mapping of environment variables to values"),
    ],
)
def test_other_variables_and_values_are_errors_of_the_recipe(make: Make, env: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml:\d+: engines\[0\]\.vllm\.env: ") as error:
        make(engines=[{"vllm": {"env": env}}], methods=["none"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_made_for_measurements_that_are_all_refused(make: Make) -> None:
    """With another engine, or another setting, that measures it, it is made once for that one."""
    methods = ["none", {"llmc-awq": {"bits": 4, "group_size": 64}}]
    short: Any = {"vllm": {"max_model_len": 256}}
    alone = make(engines=[short], methods=methods)
    assert {run.spec.kind for run in alone} == {"calibrate", "reference", "quantize", "quality"}
    for run in alone:
        assert "max_model_len is 256; raise it" in str(run.unsupported), run.spec.kind
    for other in ("transformers", "vllm"):
        both = make(engines=[short, other], methods=methods)
        made = [run for run in both if run.spec.kind != "quality"]
        assert {run.spec.run_id for run in made} == {run.spec.run_id for run in alone if run.spec.kind != "quality"}
        assert [run.unsupported for run in made] == [None] * len(made)
    caches = make(engines=["vllm"], methods=methods, kv_cache=["int4"])
    assert {run.spec.kind for run in caches if run.unsupported} == {"calibrate", "quantize", "quality"}
    assert [run.unsupported for run in caches if run.spec.kind == "reference"] == [None], "the baseline is measured"


METHODS = st.one_of(
    st.builds(
        lambda bits, size, symmetric: {"llmc-rtn": {"bits": bits, "group_size": size, "symmetric": symmetric}},
        st.sampled_from([8, 4, 3]),
        st.sampled_from([32, 64, "channel"]),
        st.booleans(),
    ),
    st.builds(lambda scheme: {"llmc-fp8": {"scheme": scheme}}, st.sampled_from(["dynamic", "static", "block"])),
    st.builds(lambda bits, act: {"gptq": {"bits": bits, "desc_act": act}}, st.sampled_from([4, 8]), st.booleans()),
    st.builds(lambda scheme: {"vllm-online": {"scheme": scheme}}, st.sampled_from(["fp8_per_channel", "mxfp8"])),
    st.just({"rtn": {"group_size": 64}}),
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    methods=st.lists(METHODS, min_size=1, max_size=4, unique_by=str),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    machine=st.sampled_from([AMX, PLAIN]),
    longest=st.sampled_from([None, 256, 1024]),
)
def test_a_refused_variant_is_one_unsupported_row(
    make: Make, methods: list[Any], dtype: str, machine: Machine, longest: int | None
) -> None:
    vllm = {"vllm": {"max_model_len": longest}} if longest else "vllm"
    runs = make(machine, dtype, methods=["none", *methods], engines=["transformers", vllm])
    found = rows(runs)
    for label in {label for label, _ in found}:
        reason = found[label, "vllm"]
        assert reason is None or "; " in reason
        assert reason is not None or longest != 256, "no text fits"
        made = [run for run in runs if run.spec.kind == "quantize" and run.spec.method.label == label]
        assert [run.unsupported for run in made] in ([], [None]), "made once, because transformers measures it"
    read = [registry.engine(name).reads for name in ("transformers", "vllm")]
    formats = [registry.method(next(iter(each))).output_format for each in methods]
    assert len(found) == 2 + sum(format in reads for format in formats for reads in read)


def test_only_answers_are_written_again_when_an_engine_writes_in_another_way(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {
        "perplexity": {"text": "demo", "context": 512, "windows": 2},
        "tasks": [{"name": "tool-calls-01", "limit": 1}],
    }
    engine = registry.engine

    def ids(version: int) -> dict[str, set[str]]:
        def changed(name: str) -> Any:
            return replace(engine(name), writing_version=version) if name == "vllm" else engine(name)

        monkeypatch.setattr(registry, "engine", changed)
        runs = [each.spec for each in make(methods=["none"], measure=asked) if each.spec.engine == "vllm"]
        return {kind: {each.run_id for each in runs if each.kind == kind} for kind in ("quality", "task")}

    first, second, third = ids(1), ids(2), ids(3)
    assert first["quality"] == second["quality"] == third["quality"] != set()
    assert len({frozenset(each["task"]) for each in (first, second, third)}) == 3
