"""Sweeps over what surrounds a method: scopes, overrides, calibration, published checkpoints, experts, other stacks."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import plugins as registry
from harness.api.plan import plan
from harness.core.label import Label, codes
from harness.core.record import RunRecord
from harness.core.site import Machine
from harness.errors import RecipeError
from harness.host.machine import installed_version
from harness.planning.plan import PlannedRun
from harness.recipe import load_recipe
from harness.stacks import Stacks

MEASURE = {"perplexity": {"context": 64, "windows": 2}, "memory": {}}
DOWN = 192 * 64  # elements of a down_proj of the tiny model; 7 matrices of a layer hold 49,152
LAYER = 2 * 64 * 64 + 2 * 32 * 64 + 3 * DOWN
H100 = Machine("cuda", "an imagined H100", (9, 0))


def recipe(tiny: Path, methods: list[object], **changes: object) -> dict[str, object]:
    model = {"id": str(tiny), "dtype": "float32", "label": "tiny"}
    return {"models": [model], "methods": methods, "measure": MEASURE, "threads": 1, **changes}


def quality(records: tuple[RunRecord, ...], label: str) -> RunRecord:
    return next(r for r in records if r.spec.kind == "quality" and r.spec.method.label == label)


def needs(package: str) -> None:
    if installed_version(package) is None:
        pytest.skip(f"{package} is not installed")


OVERRIDE = {"pattern": "*.down_proj", "parameter": "bits", "value": 8}


@pytest.fixture(scope="module")
def scoped(sweep_type, tmp_path_factory, tiny: Path) -> tuple[Any, tuple[RunRecord, ...]]:
    sweeps = sweep_type(tmp_path_factory.mktemp("scoped"))
    scope = {"skip": ["model.layers.0.*"], "overrides": {"*.down_proj": {"bits": 8}, "*.3.mlp.down_proj": {"bits": 3}}}
    methods = [{"rtn": {"bits": 4, "group_size": 32}}, "bnb-nf4"]
    return sweeps, sweeps.run(recipe(tiny, methods, scope=scope))


@pytest.mark.heavy
def test_skipped_modules_stay_as_they_were_and_the_row_says_so(scoped) -> None:
    for label, name in (("rtn bits=4 group_size=32", "PackedLinear"), ("bnb-nf4", "Linear4bit of Params4bit")):
        record = quality(scoped[1], label)
        assert record.status == "ok", record.outcome.failure
        assert record.outcome.fact("layers").arguments == {"Linear": 7, name: 21}
        assert Label("left_alone", {"modules": ("model.layers.0.*",)}) in record.outcome.labels
        assert record.find("coverage").values == (1.0,)  # of the scope that the recipe declares


@pytest.mark.heavy
def test_the_baseline_has_no_scope(scoped) -> None:
    assert quality(scoped[1], "none").outcome.labels == ()


@pytest.mark.heavy
def test_overrides_change_the_bits_of_what_they_match_the_last_pattern_winning(scoped) -> None:
    record = quality(scoped[1], "rtn bits=4 group_size=32")
    bits = {4: 3 * (LAYER - DOWN), 8: 2 * DOWN, 3: DOWN}
    expected = LAYER * 32 + sum(count * (b + (16 + b) / 32) for b, count in bits.items())
    measured = record.find("checkpoint_bytes", part="values").values[0]
    measured += record.find("checkpoint_bytes", part="scales").values[0]
    assert 8 * measured == expected
    assert Label("overridden", OVERRIDE) in record.outcome.labels


@pytest.mark.heavy
def test_a_method_that_cannot_override_is_labelled(scoped) -> None:
    assert Label("override_not_applied", OVERRIDE) in quality(scoped[1], "bnb-nf4").outcome.labels


def test_a_pattern_that_matches_nothing_is_a_wrong_recipe(sweeps, tiny: Path) -> None:
    with pytest.raises(RecipeError, match=r"scope.skip: '\*.down_porj' matches no module of tiny; its modules"):
        sweeps.run(recipe(tiny, ["rtn"], scope={"skip": ["*.down_porj"]}))


@pytest.mark.heavy
def test_a_published_checkpoint_is_measured_as_it_is(scoped, sweeps, tiny: Path) -> None:
    """What one sweep quantized is another one's published checkpoint, with the same figures."""
    made = next(r.spec for r in scoped[1] if r.spec.kind == "quantize")
    folder = sweeps.folder / "published"
    shutil.copytree(scoped[0].cache.folder("quantize", made.run_id), folder)
    records = sweeps.run(recipe(tiny, [{"checkpoint": {"id": str(folder)}}]))
    record, before = quality(records, "checkpoint published"), quality(scoped[1], "rtn bits=4 group_size=32")
    assert record.status == "ok", record.outcome.failure
    assert record.find("nll").values == before.find("nll").values
    assert record.outcome.fact("quantization_config").value.startswith(
        "bits 4, group_size 32, quant_method qharness-rtn"
    )
    assert Label("publisher_coverage", {"fraction": 0.75}) in record.outcome.labels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"quant_method": "gptqq"}, "unknown quant_method 'gptqq'"),
        ({"quant_method": "rtn"}, "unknown quant_method 'rtn'"),
    ],
)
def test_an_unknown_quant_method_is_unsupported_at_planning(sweeps, tiny: Path, content, message: str) -> None:
    folder = sweeps.folder / "model"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": content}
    (folder / "config.json").write_text(json.dumps(config))
    planned = plan(load_recipe(sweeps.recipe(recipe(tiny, ["none", {"checkpoint": {"id": str(folder)}}]))))
    assert message in refusal(planned, "checkpoint model")
    as_model = plan(load_recipe(sweeps.recipe(recipe(folder, ["none", "rtn"]))))
    assert message in refusal(as_model, "none")
    assert "already quantized" in refusal(as_model, "rtn")


def refusal(planned: tuple[PlannedRun, ...], label: str) -> str:
    return next(
        str(run.unsupported) for run in planned if run.spec.kind == "quality" and run.spec.method.label == label
    )


def test_a_checkpoint_that_is_no_folder_is_a_wrong_recipe(sweeps, tiny: Path) -> None:
    with pytest.raises(RecipeError, match=r"checkpoint\.id: model not found"):
        sweeps.run(recipe(tiny, [{"checkpoint": {"id": "./nowhere"}}]))


def test_what_needs_a_gpu_is_unsupported_on_a_cpu_and_planned_on_one(sweeps, tiny: Path) -> None:
    loaded = load_recipe(sweeps.recipe(recipe(tiny, ["none", "torchao-fp8-dynamic"])))
    on_cpu = refusal(plan(loaded, Machine("cpu", "a CPU")), "torchao-fp8-dynamic")
    assert "torchao" in on_cpu or on_cpu == "needs an NVIDIA GPU; this sweep runs on cpu"
    needs("torchao")
    assert refusal(plan(loaded, H100), "torchao-fp8-dynamic") == "None"
    old = refusal(plan(loaded, Machine("cuda", "an imagined T4", (7, 5))), "torchao-fp8-dynamic")
    assert old == "needs compute capability 8.9; this GPU has 7.5"


def test_a_calibrated_method_without_text_is_a_wrong_recipe(sweeps, tiny: Path) -> None:
    with pytest.raises(RecipeError, match=r"gptq is calibrated on text; add .calibration: \{\}."):
        plan(load_recipe(sweeps.recipe(recipe(tiny, [{"gptq": {"group_size": 32}}]))))


def test_calibrating_on_the_evaluation_text_is_refused_or_marked(sweeps, tiny: Path) -> None:
    content = recipe(tiny, [{"gptq": {"group_size": 32}}], calibration={"text": "demo"})
    loaded = load_recipe(sweeps.recipe(content))
    with pytest.raises(RecipeError, match=r"calibration.text: is the evaluation text.*--allow-leak"):
        plan(loaded)
    needs("gptqmodel")
    assert any(run.spec.kind == "calibrate" for run in plan(loaded, allow_leak=True))


@pytest.mark.heavy
@pytest.mark.thorough
def test_a_text_that_contains_the_evaluation_text_is_found_by_its_tokens(sweeps, tiny: Path) -> None:
    """Another file, another hash: only the tokens tell. Marked under --allow-leak, the very same set is used."""
    needs("gptqmodel")
    data = Path(registry.__file__).parent / "text" / "data"
    (sweeps.folder / "both.txt").write_text(
        (data / "demo_calibration.txt").read_text()[:16_000] + (data / "demo.txt").read_text()[:4_000]
    )
    content = recipe(
        tiny,
        ["none", {"gptq": {"bits": 4, "group_size": 32}}],
        calibration={"text": "both.txt", "samples": 2000, "length": 64},
    )
    refused = sweeps.run(content)
    (leaky,) = [r for r in refused if r.spec.kind == "calibrate"]
    assert leaky.status == "invalid"
    assert "stand in the calibration" in leaky.outcome.failure.message
    assert quality(refused, "gptq bits=4 group_size=32").status == "unsupported"
    assert quality(refused, "none").status == "ok"
    loaded = load_recipe(sweeps.recipe({**content, "calibration": {**content["calibration"], "samples": 100}}))
    allowed = sweeps.make(plan(loaded, allow_leak=True))
    marked = quality(allowed, "gptq bits=4 group_size=32")
    assert marked.status == "ok", marked.outcome.failure
    assert "leaked" in codes(marked.outcome.labels)
    (made,) = [r for r in allowed if r.spec.kind == "quantize"]
    assert made.outcome.fact("calibration_consumed").value.startswith("100 of 100 samples")


def test_a_missing_stack_is_told_with_what_to_do(sweeps, tiny: Path) -> None:
    planned = plan(load_recipe(sweeps.recipe(recipe(tiny, ["autoawq"], calibration={}))), stacks=Stacks(sweeps.folder))
    assert refusal(planned, "autoawq") == (
        "stack 'autoawq' is missing: qharness stack create autoawq, or run --create-stacks"
    )
    half_made = Stacks(sweeps.folder).find("autoawq").folder
    half_made.mkdir(parents=True)
    planned = plan(load_recipe(sweeps.recipe(recipe(tiny, ["autoawq"], calibration={}))), stacks=Stacks(sweeps.folder))
    assert "is half-made: qharness stack create autoawq" in refusal(planned, "autoawq")


def test_an_interpreter_without_the_library_is_told(sweeps, tiny: Path) -> None:
    stacks = Stacks(sweeps.folder, {"autoawq": Path(sys.executable)})
    planned = plan(load_recipe(sweeps.recipe(recipe(tiny, ["autoawq"], calibration={}))), stacks=stacks)
    assert refusal(planned, "autoawq").startswith("autoawq is not installed in stack 'autoawq'")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"bits": 5}, "scope.overrides.*.down_proj.bits: rtn: expected 8, 4, 3 or 2, not 5"),
        ({"bit": 8}, "no method of this recipe supports this parameter"),
    ],
)
def test_an_override_that_could_not_be_applied_is_a_wrong_recipe(sweeps, tiny: Path, own, message: str) -> None:
    with pytest.raises(RecipeError) as told:
        plan(load_recipe(sweeps.recipe(recipe(tiny, ["rtn"], scope={"overrides": {"*.down_proj": own}}))))
    assert message in str(told.value)


def test_random_weights_cannot_be_calibrated_on_text(sweeps) -> None:
    model = {"id": "synthetic:llama", "config": {"hidden_size": 64, "max_position_embeddings": 1024}}
    content = {
        "models": [model],
        "methods": [{"gptq": {"group_size": 32}}],
        "calibration": {},
        "measure": {"memory": {}},
    }
    planned = plan(load_recipe(sweeps.recipe(content)))
    assert {run.spec.kind for run in planned if not run.unsupported} == {"prepare", "performance"}
    (refused,) = {run.unsupported for run in planned if str(run.spec.names()["method"]).startswith("gptq")}
    assert refused == "random weights have no tokenizer, so calibration is not possible"


def test_the_order_of_overrides_is_part_of_the_question(sweeps, tiny: Path) -> None:
    """A later pattern wins, so the order decides; the order of what is skipped decides nothing."""
    down, first = {"*.down_proj": {"bits": 8}}, {"model.layers.0.*": {"bits": 2}}

    def ids(scope: dict[str, object]) -> set[str]:
        planned = plan(load_recipe(sweeps.recipe(recipe(tiny, ["rtn"], scope=scope))))
        return {run.spec.run_id for run in planned if run.spec.names()["method"] == "rtn"}

    assert ids({"overrides": {**down, **first}}).isdisjoint(ids({"overrides": {**first, **down}}))
    assert ids({"skip": ["*.down_proj", "*.up_proj"]}) == ids({"skip": ["*.up_proj", "*.down_proj"]})


def test_neither_calibration_nor_scope_nor_a_leak_changes_the_baseline(sweeps, tiny: Path) -> None:
    def baseline(allow_leak: bool = False, **changes: object) -> set[str]:
        measure = {**MEASURE, "divergence": {}}
        loaded = load_recipe(sweeps.recipe(recipe(tiny, ["none", "rtn"], **{"measure": measure, **changes})))
        planned = plan(loaded, allow_leak=allow_leak)
        return {run.spec.run_id for run in planned if run.spec.is_baseline}

    plain = baseline()
    assert len(plain) == 2
    assert baseline(calibration={"seed": 3}) == plain
    assert baseline(scope={"skip": ["*.down_proj"]}) == plain
    assert baseline(allow_leak=True) == plain


@pytest.mark.heavy
def test_a_checkpoint_of_another_model_is_unsupported(scoped, sweeps, tiny: Path) -> None:
    made = next(r.spec for r in scoped[1] if r.spec.kind == "quantize")
    folder = sweeps.folder / "published"
    shutil.copytree(scoped[0].cache.folder("quantize", made.run_id), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    planned = plan(load_recipe(sweeps.recipe(recipe(tiny, [{"checkpoint": {"id": str(folder)}}]))))
    assert refusal(planned, "checkpoint published") == "was not made from this model: its hidden_size is 128, not 64"


def test_a_checkpoint_that_is_not_quantized_is_a_wrong_recipe(sweeps, tiny: Path) -> None:
    with pytest.raises(RecipeError, match="not quantized; name it under 'models'"):
        plan(load_recipe(sweeps.recipe(recipe(tiny, [{"checkpoint": {"id": str(tiny)}}]))))


def test_a_scope_that_leaves_nothing_is_a_wrong_recipe(sweeps, tiny: Path) -> None:
    with pytest.raises(RecipeError, match="leaves nothing of tiny to quantize"):
        plan(load_recipe(sweeps.recipe(recipe(tiny, ["rtn"], scope={"skip": "*"}))))


def test_an_empty_text_is_a_wrong_recipe(sweeps, tiny: Path) -> None:
    (sweeps.folder / "empty.txt").write_text("")
    with pytest.raises(RecipeError, match=r"calibration.text: text file is empty"):
        plan(load_recipe(sweeps.recipe(recipe(tiny, ["rtn"], calibration={"text": "empty.txt"}))))


def test_a_recipe_may_choose_the_stack_that_quantizes(sweeps, tiny: Path) -> None:
    methods = [{"autoround": {"group_size": 32, "stack": ["main", "autoround"]}}]
    loaded = load_recipe(sweeps.recipe(recipe(tiny, methods, calibration={})))
    quantizing = [run.spec for run in plan(loaded, stacks=Stacks(sweeps.folder)) if run.spec.kind == "quantize"]
    assert [spec.stack for spec in quantizing] == ["main", "autoround"]
    assert [spec.method.label for spec in quantizing] == [
        "autoround group_size=32",
        "autoround group_size=32 stack=autoround",
    ]
    assert len({spec.case_id for spec in quantizing}) == 2


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"autoround": {"stack": "autoroundd"}}, "unknown stack 'autoroundd'; did you mean 'autoround'?"),
        ({"bnb-nf4": {"stack": "autoawq"}}, "bnb-nf4 does not quantize in a run of its own; leave it out"),
    ],
)
def test_a_stack_that_cannot_be_meant_is_a_wrong_recipe(sweeps, tiny: Path, method, message: str) -> None:
    with pytest.raises(RecipeError) as told:
        plan(load_recipe(sweeps.recipe(recipe(tiny, [method], calibration={}))))
    assert message in str(told.value)


@pytest.mark.heavy
@pytest.mark.thorough
def test_a_cache_that_a_package_packs_is_read_in_a_worker(sweeps, tiny: Path) -> None:
    """Workers hide hqq from transformers, whose import of it takes seconds, but from those that need it."""
    needs("hqq")
    records = sweeps.run(recipe(tiny, ["none"], kv_cache=["int4"], measure={"perplexity": MEASURE["perplexity"]}))
    own, packed = (record for record in records if record.spec.kind == "quality")
    assert packed.status == "ok", packed.outcome.failure
    assert "4 bits by hqq" in packed.outcome.fact("key_value_cache").value
    assert packed.outcome.before.software["hqq"]
    assert own.find("nll").values == pytest.approx(packed.find("nll").values, rel=0.05)
