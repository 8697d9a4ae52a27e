"""Plans for sites that are not this machine: other hardware, libraries and stacks, and nothing here is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from elsewhere import CPU, Elsewhere
from run_specs import run_spec

from harness import plugins
from harness.core.engine import Engine, EngineParams, LoadRequest
from harness.core.format import TRANSFORMERS_FORMAT
from harness.core.job import AnswerTask, VariantJob
from harness.core.run import RunLimits
from harness.core.site import KERNEL_PACKAGES, MAIN, Machine
from harness.errors import UsageError
from harness.execution.context import Context
from harness.execution.local import local_site
from harness.host import gpu, machine
from harness.planning.plan import PlannedRun, plan
from harness.planning.support import unsupported_engine_reason, unsupported_job_reason
from harness.recipe import load_recipe
from harness.stacks import MANIFEST, Stacks
from harness.storage.cache import Cache


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would look at this machine, or at what is installed in this process, fails the test."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"planning looked at this machine: {arguments}")

    for name in ("choose", "cpu_name", "cores", "memory_bytes", "gpu", "installed_version", "version", "cache_folder"):
        monkeypatch.setattr(machine, name, refuse)
    monkeypatch.setattr(gpu, "gpu", refuse)
    monkeypatch.setattr(metadata, "version", refuse)


H100 = Machine("cuda", "a rented H100", (9, 0), driver="580.65")
Make = Callable[[Elsewhere], dict[tuple[str, str], PlannedRun]]


@pytest.fixture
def make(sweeps, tiny: Path) -> Make:
    path = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "label": "tiny"}],
            "methods": ["none", "bnb-nf4", {"autoawq": {"group_size": 32}}, "torchao-fp8-dynamic"],
            "measure": {
                "perplexity": {"text": "demo", "context": 64, "windows": 2},
                "throughput": {"prompt_tokens": 16, "new_tokens": 4},
            },
            "calibration": {"text": str(Path(__file__))},
            "repetitions": 1,
        }
    )

    def make(site: Elsewhere) -> dict[tuple[str, str], PlannedRun]:
        runs = plan(load_recipe(path), site)
        return {(run.spec.kind, run.spec.method.name): run for run in runs if isinstance(run.spec.job, VariantJob)}

    return make


def changed(before: Mapping[tuple[str, str], PlannedRun], after: Mapping[tuple[str, str], PlannedRun]) -> set[str]:
    """The names of the methods any of whose runs has another run id. What a run is about is the same in both."""
    assert before.keys() == after.keys()
    assert all(before[key].spec.case_id == after[key].spec.case_id for key in before)
    return {name for kind, name in before if before[kind, name].spec.run_id != after[kind, name].spec.run_id}


def test_runs_belong_to_the_hardware_of_their_site(make: Make) -> None:
    one, other = make(Elsewhere()), make(Elsewhere(Machine("cpu", "another rented CPU")))
    assert changed(one, other) == {"none", "bnb-nf4", "autoawq", "torchao-fp8-dynamic"}
    assert {run.spec.hardware for run in one.values()} == {CPU.hardware}
    assert changed(one, make(Elsewhere())) == set()


def test_runs_belong_to_the_versions_of_their_site(make: Make) -> None:
    site = Elsewhere()
    before = make(site)
    assert changed(before, make(site.having(MAIN, bitsandbytes="0.51.0"))) == {"bnb-nf4"}
    assert changed(before, make(site.having(MAIN, datasets="4.0.0"))) == set()  # no run of this recipe depends on it
    after = make(site.having("autoawq", autoawq="0.3.0"))
    assert changed(before, after) == {"autoawq"}
    quantized = ("quantize", "autoawq")
    assert before[quantized].spec.environment.lock != after[quantized].spec.environment.lock


ALL = {"none", "bnb-nf4", "autoawq", "torchao-fp8-dynamic"}


def test_runs_on_a_gpu_belong_to_its_driver_and_to_the_packages_with_kernels(make: Make) -> None:
    site = Elsewhere(H100)
    before = make(site)
    newer = replace(site, hardware=replace(site.hardware, driver="590.1"))
    assert changed(before, make(newer)) == ALL
    assert changed(before, make(site.having(MAIN, **{"flash-attn": "2.8.3"}))) == ALL
    assert changed(before, make(site.having("autoawq", triton="3.5.0"))) == {"autoawq"}
    assert changed(before, make(site)) == set()


def test_the_record_of_a_gpu_run_has_the_versions_that_its_id_depends_on(tmp_path: Path) -> None:
    for kind in ("quality", "machine"):
        specs = (run_spec(kind, device=device, memory=False) for device in ("cuda", "cpu"))
        on_gpu, on_cpu = (Context(spec, Cache(tmp_path), lambda phase: None).packages for spec in specs)
        assert set(on_gpu) - set(on_cpu) == set(KERNEL_PACKAGES)


@pytest.mark.parametrize(
    ("hardware", "device", "limited"),
    [(CPU, "auto", True), (CPU, "cpu", True), (H100, "auto", False), (H100, "cuda", True)],
)
def test_a_memory_limit_holds_on_a_gpu_only_where_the_recipe_asks_for_one(
    sweeps, tiny: Path, hardware: Machine, device: str, limited: bool
) -> None:
    """A recipe for any machine was written for a CPU's memory; what CUDA maps may count, which nobody has tried."""
    wanted = {"models": [{"id": str(tiny)}], "methods": ["none"], "measure": {"memory": {}}, "device": device}
    recipe = load_recipe(sweeps.recipe({**wanted, "limits": {"memory": "8GiB", "time": "1m"}}))
    limits = {run.spec.limits for run in plan(recipe, Elsewhere(hardware))}
    assert limits == {RunLimits(60.0, 8 * 2**30 if limited else None)}


def test_runs_on_a_cpu_do_not_belong_to_what_a_gpu_runs(make: Make) -> None:
    site = Elsewhere()
    assert changed(make(site), make(site.having(MAIN, mslk="1.1.0", triton="3.5.0"))) == set()


def test_what_a_site_lacks_is_unsupported_there(make: Make) -> None:
    bare = make(Elsewhere(stacks={MAIN: {"torch": "2.10.0", "transformers": "5.10.0"}}))
    reasons = {name: run.unsupported for (kind, name), run in bare.items() if kind == "quality"}
    assert reasons["none"] is None
    assert reasons["bnb-nf4"] == "bitsandbytes is not installed; pip install 'qharness[bnb]'"
    assert reasons["autoawq"] == "stack 'autoawq' is not made there"
    emptied = make(Elsewhere().having("autoawq", autoawq=None))["quantize", "autoawq"].unsupported
    assert emptied == "autoawq is not installed in stack 'autoawq'; see qharness stack check autoawq"
    reasons = {run.unsupported for (_, name), run in make(Elsewhere()).items() if name != "torchao-fp8-dynamic"}
    assert reasons == {None}


@pytest.mark.parametrize(
    ("hardware", "reason"),
    [
        (CPU, "needs an NVIDIA GPU; this sweep runs on cpu"),
        (Machine("cuda", "a rented T4", (7, 5)), "needs compute capability 8.9; this GPU has 7.5"),
        (H100, None),
    ],
)
def test_the_sites_gpu_decides_what_runs(make: Make, hardware: Machine, reason: str | None) -> None:
    run = make(Elsewhere(hardware))["quality", "torchao-fp8-dynamic"]
    assert run.unsupported == reason
    assert (run.spec.device, run.spec.hardware) == (hardware.device, hardware.hardware)


T4, A100 = Machine("cuda", "a rented T4", (7, 5)), Machine("cuda", "a rented A100", (8, 0))


NVCC_MISSING = Machine("cuda", "a rented A100", (8, 0), absent_compilers=("nvcc", "ninja"))
UNCOMPILED = (
    "compiles its CUDA kernels when a model first runs, which needs nvcc and ninja (nvcc: NVIDIA's CUDA toolkit, of "
    "the version that torch was built for; ninja: pip install ninja)"
)


@pytest.mark.parametrize(
    ("method", "dtype", "hardware", "package"),
    [
        ({"gptq": {"group_size": 32}}, "bfloat16", NVCC_MISSING, "gptqmodel"),
        ({"gptq": {"group_size": 32}}, "float32", NVCC_MISSING, None),
        ({"gptq": {"group_size": 32, "symmetric": False}}, "bfloat16", NVCC_MISSING, None),
        ({"gptq": {"group_size": 32}}, "bfloat16", A100, None),
        ({"gptq": {"group_size": 32}}, "bfloat16", CPU, None),
        ({"awq": {"group_size": 32, "symmetric": False}}, "float16", NVCC_MISSING, "gptqmodel"),
        ({"autoround": {"group_size": 32}}, "float16", NVCC_MISSING, "gptqmodel"),
        ({"quanto": {"weights": "int2"}}, "bfloat16", NVCC_MISSING, "optimum-quanto"),
        ({"quanto": {"weights": "int8"}}, "bfloat16", NVCC_MISSING, None),
        ("bnb-nf4", "bfloat16", NVCC_MISSING, None),
        ("none", "bfloat16", NVCC_MISSING, None),
    ],
)
def test_kernels_that_are_compiled_need_a_compiler(
    sweeps, tiny: Path, method: str | dict[str, object], dtype: str, hardware: Machine, package: str | None
) -> None:
    recipe = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "dtype": dtype}],
            "methods": [*(["none"] if method != "none" else []), method],
            "calibration": {"text": str(Path(__file__))},
            "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 2}},
        }
    )
    site = Elsewhere(hardware).having(MAIN, **{"auto-round": "0.15.1", "optimum-quanto": "0.2.7"})
    runs = [run for run in plan(load_recipe(recipe), site) if isinstance(run.spec.job, VariantJob)]
    name = method if isinstance(method, str) else next(iter(method))
    reasons = {run.unsupported for run in runs if run.spec.method.name == name}
    assert reasons == {None if package is None else f"{package} {UNCOMPILED}"}


@pytest.mark.parametrize(
    ("method", "dtype", "heads", "hardware", "reason"),
    [
        ("torchao-int4", "bfloat16", 4, A100, None),
        (
            "torchao-int4",
            "float16",
            4,
            A100,
            "torchao-int4 runs in bfloat16 on an NVIDIA GPU, not in float16; give the model dtype: bfloat16",
        ),
        ("torchao-int4", "float16", 4, CPU, None),
        ("torchao-int4", "bfloat16", 4, T4, "needs compute capability 8.0; this GPU has 7.5"),
        ("torchao-int8-dynamic", "float16", 3, A100, "8 does not divide the widths 36 of this model, as a GPU needs"),
        ("torchao-int8-dynamic", "float16", 3, CPU, None),
        ("torchao-int8-dynamic", "float16", 4, T4, None),
    ],
)
def test_what_a_gpu_alone_requires_is_required_there_alone(
    sweeps, method: str, dtype: str, heads: int, hardware: Machine, reason: str | None
) -> None:
    width = {"hidden_size": 64, "head_dim": 12, "num_attention_heads": heads, "num_key_value_heads": heads}
    small = {**width, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 64}
    recipe = sweeps.recipe(
        {
            "models": [{"id": "synthetic:llama", "dtype": dtype, "config": small}],
            "methods": ["none", method],
            "measure": {"throughput": {"prompt_tokens": 16, "new_tokens": 4}},
            "scope": {"skip": ["*.o_proj"] if method == "torchao-int4" else []},
        }
    )
    runs = [run for run in plan(load_recipe(recipe), Elsewhere(hardware)) if isinstance(run.spec.job, VariantJob)]
    reasons = {run.unsupported for run in runs if run.spec.method.name == method}
    assert reasons == {reason}


def test_a_device_that_the_site_lacks_is_refused(sweeps, tiny: Path) -> None:
    wanted = {"models": [{"id": str(tiny)}], "methods": ["none"], "measure": {"memory": {}}, "device": "cuda"}
    with pytest.raises(UsageError, match="this site has no cuda"):
        plan(load_recipe(sweeps.recipe(wanted)), Elsewhere())


def engine(**declared: Any) -> Engine[Any]:
    """An engine that scores text and does nothing else, but for what is declared."""

    def load(request: LoadRequest, params: EngineParams) -> Any:
        raise AssertionError("planning loads nothing")

    whole: dict[str, Any] = {"capabilities": frozenset({"logits"}), "reads": (TRANSFORMERS_FORMAT,), **declared}
    return Engine("scorer", 1, "for this test", imports=str, load=load, params=EngineParams, **whole)


def test_an_engine_of_the_main_stack_needs_its_libraries_there() -> None:
    assert unsupported_engine_reason(engine(packages=("torch",)), Elsewhere()) is None
    reason = unsupported_engine_reason(engine(packages=("torch", "scorer-kernels")), Elsewhere())
    assert reason == "scorer-kernels is not installed; pip install scorer-kernels"


def test_an_engine_that_only_scores_may_keep_any_cache_it_declares() -> None:
    """Its decode modes are about decoding, which scoring a text is not."""
    scorer = engine(caches={"model": (), "int8": ()})
    job, other = (run_spec("quality", kv_cache=cache).job for cache in ("int8", "fp8"))
    assert isinstance(job, VariantJob)
    assert isinstance(other, VariantJob)
    assert unsupported_job_reason(job, scorer, Elsewhere()) is None
    assert unsupported_job_reason(other, scorer, Elsewhere()) == "scorer keeps no fp8 key-value cache, but model, int8"


def test_a_conversion_that_could_not_be_checked_is_unsupported(
    sweeps, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is converted is compared by its logits, which this engine does not give."""
    decoder = engine(capabilities=frozenset({"decodes"}), reads=("gguf",), convert=lambda source, out, dtype: None)
    known = plugins.engine
    monkeypatch.setattr(plugins, "engine", lambda name: decoder if name == decoder.name else known(name))
    content = {"models": [{"id": str(tiny)}], "methods": ["none"], "engines": [decoder.name]}
    measure = {"throughput": {"prompt_tokens": 16, "new_tokens": 4}}
    runs = plan(load_recipe(sweeps.recipe({**content, "measure": measure})), Elsewhere())
    (convert,) = (run for run in runs if run.spec.kind == "convert")
    assert convert.unsupported == "a convert run needs the capability logits; scorer has only decodes"


def test_answers_are_written_only_by_an_engine_that_can() -> None:
    task = run_spec("task").job
    assert isinstance(task, AnswerTask)
    drawn = replace(task, task=replace(task.task, samples=8, temperature=0.6))
    assert unsupported_job_reason(task, engine(), Elsewhere()) is None, "its questions may only be scored"
    for able in ("generates", "completes"):
        both = engine(capabilities=frozenset({"logits", able}), streams=frozenset({"logits"}))
        assert unsupported_job_reason(drawn, both, Elsewhere()) is None
        streamed = replace(drawn, conditions=replace(drawn.conditions, residency="streamed"))
        reason = unsupported_job_reason(streamed, both, Elsewhere()) or ""
        assert reason.endswith("need the capability generates or completes of a streamed model, which scorer lacks")
    assert unsupported_job_reason(drawn, engine(), Elsewhere()) == (
        "answers that are written need the capability generates or completes, which scorer lacks"
    )


def test_a_package_of_a_stack_is_found_by_any_spelling_of_its_name(tmp_path: Path) -> None:
    folder = Stacks(tmp_path / "stacks").find("llamacpp").folder
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    made = {"versions": {"llama-cpp-python": "0.3"}, "compiler_flags": []}
    (folder / MANIFEST).write_text(json.dumps(made), encoding="utf-8")
    site = local_site(tmp_path)
    assert {site.version(name, "llamacpp") for name in ("llama-cpp-python", "Llama_Cpp_Python")} == {"0.3"}
