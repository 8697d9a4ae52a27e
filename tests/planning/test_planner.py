"""Plans: order, identity, and what is refused before anything runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.api.plan import plan
from harness.core.job import MakeCalibration
from harness.core.run import RunSpec
from harness.core.site import Machine
from harness.core.variant import labels
from harness.errors import RecipeError
from harness.execution.local import local_site
from harness.host.machine import installed_version
from harness.planning.plan import PlannedRun
from harness.planning.recipe_of import recipe_of
from harness.planning.support import unsupported_job_reason
from harness.plugins import engine as runtime
from harness.recipe import load_recipe
from harness.storage.json_codec import decode, encode

MACHINE = Machine("cpu", "a test machine")
needs_lm_eval = pytest.mark.skipif(
    installed_version("lm-eval") is None, reason="needs lm-eval: pip install 'qharness[eval]'"
)


def test_performance_is_interleaved_with_repetitions_outermost(make) -> None:
    titles = [run.spec.title for run in make()]
    assert titles == [
        "machine a test machine",
        "reference tiny",
        "quality none",
        "quantize rtn bits=4 group_size=32",
        "quality rtn bits=4 group_size=32",
        "quantize rtn bits=3 group_size=32",
        "quality rtn bits=3 group_size=32",
        *[
            f"performance {method} #{n}"
            for n in (1, 2)
            for method in ("none", "rtn bits=4 group_size=32", "rtn bits=3 group_size=32")
        ],
    ]


def test_a_run_names_the_runs_whose_artifacts_it_reads(make) -> None:
    runs = {run.spec.title: run.spec for run in make()}
    quality = runs["quality rtn bits=4 group_size=32"]
    assert dict(quality.needs) == {
        "quantize": runs["quantize rtn bits=4 group_size=32"].run_id,
        "reference": runs["reference tiny"].run_id,
    }
    assert dict(runs["quantize rtn bits=4 group_size=32"].needs) == {}


def test_every_run_has_an_id_of_its_own_and_keeps_it(make) -> None:
    first, second = make(), make()
    assert [run.spec.run_id for run in first] == [run.spec.run_id for run in second]
    assert len({run.spec.run_id for run in first}) == len(first)


def test_repetitions_ask_the_same_question(make) -> None:
    runs = [run.spec for run in make() if run.spec.title.startswith("performance none")]
    assert len({run.case_id for run in runs}) == 1
    assert len({run.run_id for run in runs}) == 2


def test_the_question_changes_with_seed_text_and_model_but_not_with_hardware(make, sweeps, tiny: Path) -> None:
    def quality(runs: tuple[PlannedRun, ...]):
        return next(run.spec for run in runs if run.spec.title == "quality none")

    base = quality(make())
    assert quality(make(seed=1)).case_id != base.case_id
    text = {"perplexity": {"text": "demo_calibration", "context": 64, "windows": 2}, "divergence": {}}
    assert quality(make(measure=text)).case_id != base.case_id
    assert quality(make(models=[{"id": str(tiny), "label": "tiny", "degrid": 0}])).case_id != base.case_id
    elsewhere = plan(load_recipe(sweeps.folder / "recipe.yaml"), Machine("cpu", "another machine"))
    here = plan(load_recipe(sweeps.folder / "recipe.yaml"), MACHINE)
    assert quality(elsewhere).case_id == quality(here).case_id
    assert quality(elsewhere).run_id != quality(here).run_id


def test_what_cannot_change_an_artifact_is_no_part_of_its_name(make) -> None:
    def quantize(runs: tuple[PlannedRun, ...]) -> str:
        return next(run.spec.run_id for run in runs if run.spec.kind == "quantize")

    measure = {"perplexity": {"text": "demo", "context": 64, "windows": 2}, "divergence": {}, "memory": {}}
    assert quantize(make(measure=measure, threads=1)) == quantize(make())
    assert quantize(make(seed=1)) != quantize(make())


def test_a_run_on_another_artifact_is_another_run(make) -> None:
    spec = next(run.spec for run in make() if run.spec.title == "quality none")
    other = replace(spec, needs={**spec.needs, "reference": "of another version"})
    assert other.case_id == spec.case_id
    assert other.run_id != spec.run_id


def test_a_model_copied_elsewhere_is_the_same_model(make, tmp_path: Path, tiny: Path) -> None:
    import shutil

    copy = shutil.copytree(tiny, tmp_path / "copy")
    assert make()[1].spec.run_id == make(models=[{"id": str(copy), "label": "tiny"}])[1].spec.run_id


def test_the_baseline_is_added_where_the_recipe_leaves_it_out(make) -> None:
    assert "quality none" in [run.spec.title for run in make(methods=["int8"])]


def test_the_same_variant_written_twice_is_planned_once(make) -> None:
    runs = make(methods=["none", "rtn", {"ptq": {"bits": 4, "group_size": 64}}])
    assert sum(run.spec.kind == "quantize" for run in runs) == 1


def test_a_group_that_the_widths_refuse_is_unsupported_not_wrong(make) -> None:
    runs = make(methods=["none", {"rtn": {"group_size": 128}}])
    refused = [run for run in runs if run.unsupported]
    assert {run.spec.kind for run in refused} == {"quantize", "quality", "performance"}
    assert "group_size 128 does not divide the input widths 64, 192" in str(refused[0].unsupported)


def test_blocks_of_bitsandbytes_that_reach_over_rows_are_refused_on_a_cpu(make, tmp_path: Path) -> None:
    """With AVX-512 it unpacks them with scales of other blocks, or fails. In 8 bits a row has one scale."""
    shape = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", **shape, **heads}
    (tmp_path / "config.json").write_text(json.dumps(config))
    narrow = [{"id": f"synthetic:{tmp_path / 'config.json'}", "label": "narrow"}]
    timed = {"throughput": {"prompt_tokens": 16, "new_tokens": 4}}
    runs = make(models=narrow, methods=["none", "bnb-nf4", "bnb-int8"], measure=timed)
    reasons = {run.spec.method.name: run.unsupported for run in runs if run.spec.kind == "performance"}
    assert reasons["bnb-nf4"] == "64 does not divide the input widths 96, as a CPU needs"
    assert reasons["bnb-int8"] is None


def test_a_context_beyond_the_models_is_unsupported(make) -> None:
    measure = {"perplexity": {"text": "demo", "context": 4096}, "throughput": {"prompt_tokens": 510, "new_tokens": 8}}
    reasons = {run.spec.kind: run.unsupported for run in make(measure=measure, methods=["none"])}
    assert reasons == {
        "quality": "perplexity context 4096 exceeds the model's 512",
        "performance": "prompt and new tokens, 518, exceed the model's context of 512",
    }


GENERATED = {"generated": {"answers": 2, "tokens": 64}}


def test_a_generated_text_is_written_once_before_all_that_score_it(make) -> None:
    measure = {"perplexity": [{"text": GENERATED}, {"text": "demo", "context": 64}], "divergence": {}}
    runs = [run.spec for run in make(measure=measure, engines=["transformers", "llamacpp"], kv_cache=["model", "int8"])]
    (write,) = [run for run in runs if run.kind == "write"]
    assert (write.is_baseline, write.engine) == (True, "transformers")
    (reference,) = [run for run in runs if run.kind == "reference" and "write" in run.needs]
    scoring = [run for run in runs if run.kind == "quality" and run.perplexity == write.perplexity]
    assert {run.engine for run in scoring} == {"transformers", "llamacpp"}
    assert {run.needs["write"] for run in (reference, *scoring)} == {write.run_id}
    assert {run.needs["reference"] for run in scoring} == {reference.run_id}
    others = [run for run in runs if run.kind in ("quality", "reference") and run.perplexity != write.perplexity]
    assert others
    assert not any("write" in run.needs for run in others)
    assert runs.index(write) < runs.index(reference) < min(map(runs.index, scoring))


def test_what_is_written_depends_on_prompts_seed_length_and_temperature(make, tmp_path: Path) -> None:
    def case(**changes: object) -> str:
        text = {"generated": {**GENERATED["generated"], **changes}}
        runs = make(measure={"perplexity": {"text": text}})
        assert {run.spec.kind for run in runs} == {"write", "quality", "quantize"}
        return next(run.spec.case_id for run in runs if run.spec.kind == "write")

    (tmp_path / "prompts.txt").write_text("Once\nTwice\n")
    changes = [
        {"seed": 1},
        {"tokens": 32},
        {"answers": 3},
        {"temperature": 0},
        {"prompts": str(tmp_path / "prompts.txt")},
    ]
    assert case() == case()
    assert len({case(), *(case(**each) for each in changes)}) == 1 + len(changes)


def test_a_generated_text_longer_than_the_context_is_unsupported(make) -> None:
    measure = {"perplexity": {"text": {"generated": {"answers": 1, "tokens": 4096}}}}
    assert {run.unsupported for run in make(measure=measure, methods=["none"])} == {
        "perplexity context 4096 exceeds the model's 512"
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"text": GENERATED, "windows": 3}, "a generated one has 'answers' and 'tokens' instead"),
        ({"text": GENERATED, "protocol": "sliding"}, "a generated one has 'answers' and 'tokens' instead"),
        ({"text": {**GENERATED, "name": "demo"}}, "expected exactly one of name, file, hub and generated"),
        ({"text": {"generated": {"answers": 2**15, "tokens": 2**15}}}, "at most 1048576 tokens, answers × tokens"),
        ({"text": {"generated": {"prompts": "demo_promts"}}}, "did you mean 'demo_prompts'"),
    ],
)
def test_a_generated_text_that_cannot_be_is_refused(make, entry: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        make(measure={"perplexity": entry})


def test_a_text_to_calibrate_with_is_not_generated(make) -> None:
    with pytest.raises(RecipeError, match="generated"):
        make(calibration={"text": GENERATED})


def test_every_protocol_has_a_reference_and_quality_runs_of_its_own(make) -> None:
    perplexity = [
        {"context": 64, "windows": 2},
        {"protocol": "sliding", "context": 64},
        {"protocol": "llama.cpp"},
        {"protocol": "llama.cpp", "bos": "never"},
    ]
    runs = [run.spec for run in make(measure={"perplexity": perplexity, "divergence": {}, "memory": {}})]
    references = {run.run_id: run.perplexity for run in runs if run.kind == "reference"}
    assert [(w.protocol, w.context, w.stride, w.bos) for w in references.values() if w] == [
        ("gptq", 64, None, "auto"),
        ("sliding", 64, 32, "auto"),
        ("llama.cpp", 512, None, "auto"),
        ("llama.cpp", 512, None, "never"),
    ]
    quality = [run for run in runs if run.kind == "quality"]
    assert len(quality) == 3 * 4
    assert len({run.case_id for run in quality}) == len(quality)
    assert all(references[run.needs["reference"]] == run.perplexity for run in quality)
    assert sum(run.kind == "quantize" for run in runs) == 2
    assert not any(run.kind == "performance" for run in runs)


def test_the_usual_protocol_is_the_same_question_written_or_not(make) -> None:
    def quality(**entry: object) -> str:
        runs = make(measure={"perplexity": {"context": 64, **entry}})
        return next(run.spec.case_id for run in runs if run.spec.kind == "quality" and run.spec.is_baseline)

    assert quality() == quality(protocol="gptq", bos="auto")
    assert quality(protocol="sliding") == quality(protocol="sliding", stride=32)
    assert len({quality(), quality(bos="never"), quality(protocol="sliding"), quality(protocol="lm-eval")}) == 4


def test_every_decode_mode_has_timed_runs_of_its_own_and_quality_is_asked_once(make) -> None:
    eager = {run.spec.run_id for run in make()}
    both = make(decode_mode=["compiled", "eager"])
    assert eager < {run.spec.run_id for run in both}  # what was timed before is the same question
    added = [run.spec for run in both if run.spec.run_id not in eager]
    assert {spec.kind for spec in added} == {"performance"}
    assert [spec.title for spec in added[:2]] == [
        "performance none · compiled #1",
        "performance rtn bits=4 group_size=32 · compiled #1",
    ]
    assert added[0].subject == "tiny × none · compiled × transformers"
    assert all(cell.protocol["decode_mode"] == "compiled" for spec in added for cell in spec.throughput.cells)


def test_every_cache_is_a_variant_and_the_model_is_quantized_once(make) -> None:
    plain = {run.spec.run_id for run in make()}
    both = make(kv_cache=["fp8", "model"])
    assert plain < {run.spec.run_id for run in both}  # what was asked before is the same question
    added = [run.spec for run in both if run.spec.run_id not in plain]
    assert {spec.kind for spec in added} == {"quality", "performance"}
    assert {spec.kv_cache for spec in added} == {"fp8"}
    assert not any(spec.is_baseline for spec in added)
    assert added[0].subject == "tiny × none · fp8 cache × transformers"
    alone = [run.spec for run in make(kv_cache="fp8") if run.spec.kind == "quality"]
    assert [spec.title for spec in alone][:2] == ["quality none", "quality none · fp8 cache"]


def test_a_cache_of_fewer_bits_is_not_compiled(make) -> None:
    runs = make(kv_cache=["fp8"], decode_mode=["eager", "compiled"])
    refused = {run.spec.method_label for run in runs if run.unsupported}
    assert "none · fp8 cache · compiled" in refused
    assert all(label.endswith("cache · compiled") for label in refused)


def test_what_an_engine_lacks_is_unsupported_while_planning(make) -> None:
    """Whether or not the stack of llama.cpp is there: without it everything on that engine is unsupported."""
    engines = {"engines": ["transformers", "llamacpp"], "methods": ["none"]}
    runs = [
        run
        for run in make(**engines, kv_cache=["model", "fp8"], decode_mode=["eager", "compiled"])
        if run.spec.engine == "llamacpp"
    ]
    lacking = [run for run in runs if run.spec.kv_cache == "fp8" or run.spec.decode_mode == "compiled"]
    assert lacking
    for run in lacking:
        kept = "keeps no fp8 key-value cache, but model, int8, int4"
        mode = "cannot decode in decode_mode compiled; it can in eager"
        assert run.unsupported in (f"llamacpp {kept}", f"llamacpp {mode}") or "stack 'llamacpp'" in run.unsupported


def test_vllm_compiles_by_a_parameter_of_its_own(make) -> None:
    """Each value is a row; decode_mode compiled says what to write in its place, whether or not its stack is there."""
    engines = ["transformers", {"vllm": {"enforce_eager": [True, False]}}]
    runs = make(engines=engines, methods=["none"], decode_mode=["eager", "compiled"])
    timed = [run.spec for run in runs if run.spec.kind == "performance" and run.spec.engine == "vllm"]
    assert {tuple(spec.variant.engine_params.items()) for spec in timed} == {(), (("enforce_eager", False),)}
    reasons = {spec.decode_mode: unsupported_job_reason(spec.job, runtime("vllm"), local_site()) for spec in timed}
    assert reasons["eager"] is None
    assert reasons["compiled"] == (
        "vllm cannot decode in decode_mode compiled; it compiles when it loads: leave decode_mode out, and write "
        "engines: [{vllm: {enforce_eager: false}}]"
    )


def test_engine_parameters_make_variants_and_their_defaults_change_nothing(make) -> None:
    usual = [run.spec.run_id for run in make(methods=["none", {"rtn": {"bits": 4}}])]
    for engine in ("transformers", {"transformers": {}}):
        again = make(methods=["none", {"rtn": {"bits": 4}}], engines=[engine])
        assert [run.spec.run_id for run in again] == usual
        assert not any(run.spec.variant.engine_params for run in again if run.spec.kind == "quality")
    runs = make(
        methods=["none", {"rtn": {"bits": 4}}],
        engines=["transformers", {"transformers": {"attention": ["eager", "sdpa"]}}],
    )
    assert set(usual) < {run.spec.run_id for run in runs}
    kinds = [run.spec.kind for run in runs]
    assert kinds.count("reference") == kinds.count("quantize") == 1, "what is made serves every setting"
    quality = [run.spec for run in runs if run.spec.kind == "quality"]
    assert [spec.title for spec in quality if spec.method.name == "none"] == [
        "quality none",
        "quality none · transformers attention=eager",
        "quality none · transformers attention=sdpa",
    ]
    assert len({spec.case_id for spec in quality}) == len({spec.variant.key for spec in quality}) == 6
    assert len({spec.variant.name_key for spec in quality}) == 6
    shown = labels((spec.variant, spec.decode_mode) for spec in quality)
    assert len(set(shown.values())) == 6


def test_exclude_knows_the_parameters_of_engines(make) -> None:
    engines = [{"llamacpp": {"threads": [1, 2]}}, "transformers"]
    runs = make(engines=engines, methods=["none", {"gguf": {"type": "Q8_0"}}], exclude=[{"threads": 2}])
    left = {(run.spec.method.name, run.spec.engine_label) for run in runs if run.spec.kind == "quality"}
    assert left == {
        ("none", "transformers"),
        ("none", "llamacpp threads=1"),
        ("none", "llamacpp threads=2"),  # a baseline is never left out
        ("gguf", "llamacpp threads=1"),
    }


def test_a_method_runs_on_the_engines_that_read_what_it_writes(make) -> None:
    both = {"engines": ["transformers", "llamacpp"]}
    runs = make(**both, methods=["none", {"gguf": {"type": "Q8_0"}}, {"rtn": {"bits": 4}}, "bnb-nf4"])
    ran = {(run.spec.method.name, run.spec.engine) for run in runs if run.spec.kind == "quality"}
    assert ran == {("none", "transformers"), ("none", "llamacpp"), ("gguf", "llamacpp")} | {
        (name, "transformers") for name in ("rtn", "bnb-nf4")
    }
    with pytest.raises(RecipeError, match="gguf type=Q8_0 runs on llamacpp; name it under 'engines'"):
        make(methods=[{"gguf": {"type": "Q8_0"}}])


def test_memory_alone_is_measured_once_whatever_the_decode_mode(make) -> None:
    runs = make(measure={"memory": {}}, repetitions=1)
    assert [run.spec.title for run in runs if run.spec.kind == "performance"] == [
        f"performance {method} #1" for method in ("none", "rtn bits=4 group_size=32", "rtn bits=3 group_size=32")
    ]


def test_calibration_is_held_against_every_text_that_is_scored(make) -> None:
    perplexity = [{"text": "demo", "context": 64}, {"text": "demo_calibration", "context": 64}]
    changes = {"methods": [{"gptq": {"group_size": 32}}], "measure": {"perplexity": perplexity}}
    with pytest.raises(RecipeError, match=r"calibration.text: is the evaluation text"):
        make(calibration={"text": "demo_calibration"}, **changes)
    perplexity[1]["text"] = "demo"
    perplexity[1]["protocol"] = "lm-eval"
    if installed_version("gptqmodel") is None:
        pytest.skip("needs gptqmodel: what cannot quantize is not calibrated")
    runs = [run.spec for run in make(calibration={"text": "demo_calibration"}, **changes)]
    assert {run.kind for run in runs} == {"calibrate", "quantize", "quality"}
    assert [len(run.job.evaluations) for run in runs if isinstance(run.job, MakeCalibration)] == [2]


def test_exclude_leaves_out_what_matches_every_key(make) -> None:
    titles = [run.spec.title for run in make(exclude=[{"method": "rtn", "bits": 3}])]
    assert any("bits=4" in title for title in titles)
    assert not any("bits=3" in title for title in titles)


def test_exclude_knows_caches_and_decode_modes_and_leaves_the_baseline(make) -> None:
    wide = {"kv_cache": ["model", "fp8"], "decode_mode": ["eager", "compiled"]}
    without = [{"kv_cache": "fp8"}, {"method": "rtn", "decode_mode": "compiled"}, {"decode_mode": "eager", "bits": 3}]
    left = {run.spec.title for run in make(**wide, exclude=without)}
    every = {run.spec.title for run in make(**wide)}
    gone = every - left
    assert all("fp8 cache" in title or "compiled" in title or "bits=3" in title for title in gone)
    assert not any("fp8 cache" in title for title in left)
    assert {title.split(" #")[0] for title in left if "compiled" in title} == {"performance none · compiled"}
    assert not any(title.startswith("performance") and "bits=3" in title for title in left)
    assert any(title.startswith("quality") and "bits=3" in title for title in left), "a mode is no matter of quality"
    assert {run.spec.title for run in make(exclude=[{"kv_cache": "model"}])} >= {"quality none"}


def test_two_models_of_one_label_are_refused(make, tiny: Path) -> None:
    with pytest.raises(RecipeError, match="same label"):
        make(models=[{"id": str(tiny), "label": "a"}, {"id": str(tiny), "degrid": 0, "label": "a"}])


def test_one_model_written_twice_is_refused(make, tiny: Path) -> None:
    with pytest.raises(RecipeError, match="the same model is listed twice"):
        make(models=[{"id": str(tiny), "label": "a"}, {"id": str(tiny), "label": "b"}])


def test_a_synthetic_model_is_measured_for_speed_alone(make) -> None:
    config = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    runs = make(models=[{"id": "synthetic:llama", "config": config}], methods=["none"], repetitions=1)
    assert [run.spec.kind for run in runs] == ["machine", "prepare", "performance"]
    decoder, others = 2 * (4 * 64 * 64 + 3 * 64 * 128), 2 * 100 * 64 + (2 * 2 + 1) * 64
    assert runs[1].weight_bytes == 4 * (decoder + others)


def test_the_machine_is_measured_once_for_all_models_and_recipes(make, tiny: Path) -> None:
    def machine(**changes: object) -> list[str]:
        return [run.spec.run_id for run in make(**changes) if run.spec.kind == "machine"]

    (once,) = machine(models=[{"id": str(tiny), "label": "a"}, {"id": str(tiny), "label": "b", "degrid": 0}])
    rtn = {"methods": ["rtn"], "seed": 3, "scope": {"skip": ["*down*"]}}
    assert machine(models=[{"id": str(tiny), "degrid": 1}], limits={"memory": "3GiB"}, **rtn) == [once]
    assert machine(threads=1) != [once]
    assert machine(measure={"perplexity": {"text": "demo", "context": 64}, "memory": {}}) == []


def test_no_run_needs_the_machine(make) -> None:
    (machine,) = (run.spec.run_id for run in make() if run.spec.kind == "machine")
    assert not any(machine in run.spec.needs.values() for run in make())


def test_planning_imports_no_torch(make, sweeps) -> None:
    make()
    code = (
        "import sys; from harness import load_recipe, plan; plan(load_recipe(sys.argv[1])); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'plotly')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(sweeps.folder / "recipe.yaml")], check=False).returncode == 0


@needs_lm_eval
def test_every_variant_is_asked_every_task_in_a_run_of_its_own(make, tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("{}\n")
    tasks = [{"name": "arc_easy", "data": str(data)}, {"name": "arc_easy", "data": str(data), "fewshot": 5}, "mmlu"]
    runs = [run.spec for run in make(methods=["none", "rtn"], measure={"tasks": tasks}) if run.spec.kind == "task"]
    assert [(run.method.name, run.task.name, run.task.fewshot) for run in runs] == [
        (method, name, fewshot)
        for method in ("none", "rtn")
        for name, fewshot in (("arc_easy", None), ("arc_easy", 5), ("mmlu", None))
    ]
    assert len({run.run_id for run in runs}) == 6
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(data.read_bytes())
    again = make(methods=["none"], measure={"tasks": [{"name": "arc_easy", "data": str(moved)}]})
    assert next(run.spec.run_id for run in again if run.spec.kind == "task") == runs[0].run_id
    data.write_text('{"other": 1}\n')
    changed = make(methods=["none"], measure={"tasks": [{"name": "arc_easy", "data": str(data)}]})
    assert next(run.spec.run_id for run in changed if run.spec.kind == "task") != runs[0].run_id


@needs_lm_eval
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("arc_eazy", r"measure.tasks\[0\].name: lm-eval knows no task 'arc_eazy'; did you mean 'arc_easy'"),
        ({"name": "arc_easy", "data": "no.jsonl"}, r"measure.tasks\[0\].data: text file not found"),
        ({"name": "own.yaml"}, r"measure.tasks\[0\].name: task file not found"),
        ({"name": "arc_easy", "fewshot_data": "x.jsonl"}, "fewshot_data: needs 'data' beside it"),
        ({"name": "arc_easy", "temperature": 0.6}, "temperature: the model writes no answers to arc_easy"),
        ({"name": "mmlu", "new_tokens": 9}, "new_tokens: the model writes no answers to mmlu"),
        ({"name": "gsm8k", "samples": 8}, "samples: 8 needs a temperature beside it, such as temperature: 0.6"),
        ({"name": "gsm8k", "top_p": 0.9}, "top_p: 0.9 needs a temperature beside it"),
        ({"name": "gsm8k", "temperature": 0}, "temperature: .*greater than 0"),
    ],
)
def test_a_task_that_cannot_be_asked_is_told(make, entry: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(measure={"tasks": [entry]})


@needs_lm_eval
def test_how_answers_are_written_is_part_of_the_question_only_if_the_recipe_says_it(make) -> None:
    """Ids of tasks that were asked before samples existed stay as they are."""
    entries = [
        {"name": "gsm8k"},
        {"name": "gsm8k", "samples": 8, "temperature": 0.6},
        {"name": "gsm8k", "new_tokens": 9},
    ]
    specs = [run.spec for run in make(methods=["none"], measure={"tasks": entries}) if run.spec.kind == "task"]
    plain, drawn, longer = (spec.job.question["task"] for spec in specs)
    assert not {"samples", "temperature", "top_p", "new_tokens"} & plain.keys()
    assert drawn == plain | {"samples": 8, "temperature": 0.6}
    assert longer == plain | {"new_tokens": 9}
    assert len({spec.case_id for spec in specs}) == 3
    for spec in specs:
        assert decode(RunSpec, json.loads(encode(spec)), "a spec") == spec
    again = recipe_of(specs, lambda content: None)["measure"]["tasks"]
    assert [
        {name: each[name] for name in ("samples", "temperature", "new_tokens") if name in each} for each in again
    ] == [
        {},
        {"samples": 8, "temperature": 0.6},
        {"new_tokens": 9},
    ]


@needs_lm_eval
def test_a_tag_is_its_tasks_and_nothing_is_asked_twice(make) -> None:
    runs = [run.spec.task.name for run in make(methods=["none"], measure={"tasks": ["ai2_arc"]}) if run.spec.task]
    assert runs == ["arc_challenge", "arc_easy"]
    with pytest.raises(RecipeError, match="asks 'arc_easy' twice in the same way"):
        make(measure={"tasks": ["ai2_arc", "arc_easy"]})
