"""Every planned variant has exactly one row per decode mode, with its own figures and a label of its own."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_specs import changed

from harness.analysis.tradeoff import tradeoff
from harness.api.plan import plan
from harness.core.model import MethodRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.run import RunSpec
from harness.core.site import Machine
from harness.core.variant import labels
from harness.core.workload import CalibrationRef, TextRef
from harness.planning.plan import PlannedRun
from harness.plugins import engine, engine_names
from harness.recipe import load_recipe
from harness.stacks import Stacks

Bench = Any  # the class in conftest.py, which cannot be imported
MACHINE = Machine("cpu", "a test machine")
OF_A_ROW = ("model", "method", "scope", "skip", "overrides", "calibration", "seed", "engine", "kv_cache")
"""What of a question is the variant's; all else says what is asked of it."""


@dataclass(frozen=True)
class Folder:
    """Where the generated recipes find their model and the checkpoints that somebody published of it."""

    path: Path

    def plan(self, recipe: dict[str, Any]) -> tuple[PlannedRun, ...]:
        place = self.path / "recipe.yaml"
        place.write_text(yaml.safe_dump({"name": "sweep", **recipe}, sort_keys=False), encoding="utf-8")
        return plan(load_recipe(place), MACHINE, Stacks(self.path / "stacks"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Folder:
    """Two published checkpoints of one name, whose configurations are not the same."""
    path = tmp_path_factory.mktemp("recipes")
    shutil.copytree(tiny, path / "model")
    for maker, bits in (("one", 4), ("other", 8)):
        shutil.copytree(tiny, path / maker / "published")
        place = path / maker / "published" / "config.json"
        config = json.loads(place.read_text(encoding="utf-8"))
        config["quantization_config"] = {"quant_method": "gptq", "bits": bits, "group_size": 32}
        place.write_text(json.dumps(config), encoding="utf-8")
    return Folder(path)


METHODS: tuple[Any, ...] = (
    {"rtn": {"bits": [4, 3], "group_size": 32}},
    {"rtn": {"bits": 4, "group_size": 32}},
    {"rtn": {"bits": 4}},
    {"autoround": {"bits": 4, "group_size": 32, "stack": ["main", "autoround"]}},
    {"autoround": {"bits": 4, "group_size": 32, "stack": "autoround"}},
    {"gptq": {"bits": 4, "group_size": 32}},
    "bnb-nf4",
    {"checkpoint": {"id": "one/published"}},
    {"checkpoint": {"id": "other/published"}},
    {"gguf": {"type": ["Q4_0", "Q8_0"]}},
)

RECIPES = st.fixed_dictionaries(
    {
        "models": st.builds(
            lambda label: [{"id": "model", "label": label, "dtype": "float32"}], st.sampled_from(["tiny", "small"])
        ),
        "methods": st.lists(st.sampled_from(METHODS), min_size=1, max_size=4).map(lambda found: ["none", *found]),
        "calibration": st.fixed_dictionaries(
            {"text": st.just("demo_calibration"), "samples": st.sampled_from([8, 16]), "length": st.just(64)},
            optional={"seed": st.sampled_from([1, 2])},
        ),
        "measure": st.just(
            {
                "perplexity": {"text": "demo", "context": 64, "windows": 2},
                "throughput": {"prompt_tokens": 16, "new_tokens": 4},
            }
        ),
    },
    optional={
        "engines": st.just(["transformers", "llamacpp"]),
        "kv_cache": st.sampled_from([["int8"], ["model", "int4"]]),
        "decode_mode": st.sampled_from([["eager", "compiled"], ["compiled"]]),
        "seed": st.sampled_from([0, 1, 2]),
        "scope": st.fixed_dictionaries(
            {},
            optional={
                "skip": st.sampled_from([["*.down_proj"], ["*.up_proj"], ["*.up_proj", "*.down_proj"]]),
                "overrides": st.sampled_from([{"*.q_proj": {"bits": 8}}, {"*.q_proj": {"bits": 2}}]),
            },
        ),
    },
)


def possible(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without what its other parts make meaningless: the planner refuses that, and rightly."""
    names = [next(iter(each)) if isinstance(each, dict) else each for each in recipe["methods"]]
    if "llamacpp" not in recipe.get("engines", ()):
        kept = [each for each, name in zip(recipe["methods"], names, strict=True) if name != "gguf"]
        recipe = {**recipe, "methods": kept}
    published = [
        each["checkpoint"]["id"] for each in recipe["methods"] if isinstance(each, dict) and "checkpoint" in each
    ]
    if len(set(published)) > 1:  # one recipe may not hold two of one name; two recipes may
        kept = [each for each in recipe["methods"] if each != {"checkpoint": {"id": "other/published"}}]
        recipe = {**recipe, "methods": kept}
    if not {"rtn", "gptq", "autoround"} & set(names):
        scope = {name: value for name, value in recipe.get("scope", {}).items() if name != "overrides"}
        recipe = {**recipe, "scope": scope}
    return recipe


def identity(spec: RunSpec) -> str:
    """What a row is of, by the question that its runs ask."""
    return json.dumps([spec.question.get(part) for part in OF_A_ROW], sort_keys=True)


def made(planned: Sequence[PlannedRun], figures: dict[str, int], bench: Bench) -> list[RunRecord]:
    """A record of each run. Its figure is its variant's own, so that a figure in another's row is seen."""
    records = []
    for spec in (run.spec for run in planned):
        if spec.kind not in ("quality", "performance"):
            records.append(bench.record(spec, Outcome("ok")))
            continue
        own = figures.setdefault(identity(spec), len(figures) + 1)
        found = [
            Measurement(
                "stored_bytes", 1, "byte", "lower", "exact", (float(own),), {"role": "linear", "part": "values"}
            )
        ]
        if spec.kind == "quality":
            found.append(bench.nll([float(own), own + 0.5]))
        else:
            mode = 0 if spec.decode_mode == "eager" else 1000
            point = {"batch_size": 1, "prompt_tokens": 16, "new_tokens": 4}
            steps = (1 / (mode + own),) * 4
            found.append(Measurement("decode_step_s", 1, "s", "lower", "samples", steps, point))
        records.append(bench.record(spec, Outcome("ok", measurements=tuple(found))))
    return records


@given(st.lists(RECIPES.map(possible), min_size=1, max_size=2))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_planned_variant_has_one_row_per_decode_mode(folder: Folder, bench: Bench, recipes: Any) -> None:
    planned: dict[str, PlannedRun] = {}
    for recipe in recipes:  # as the store has it: a run that was made is not made again
        planned = {run.spec.run_id: run for run in folder.plan(recipe)} | planned
    figures: dict[str, int] = {}
    (table,) = tradeoff(made(list(planned.values()), figures, bench))
    wanted = {
        (identity(spec), spec.decode_mode)
        for spec in (run.spec for run in planned.values())
        if spec.kind == "performance"
    }
    own = {number: name for name, number in figures.items()}
    found = [(own[row.stored_bytes], row.decode_mode) for row in table.rows if row.stored_bytes]
    assert sorted(found) == sorted(wanted)
    assert len({row.label for row in table.rows}) == len(table.rows) == len(wanted)
    for row in table.rows:
        number = row.stored_bytes or 0
        assert row.perplexity is not None
        assert row.perplexity.value == pytest.approx(math.exp(number + 0.25))
        (speed,) = row.speeds
        assert speed.decode_tok_per_s is not None
        assert speed.decode_tok_per_s.value == pytest.approx(number + (0 if row.decode_mode == "eager" else 1000))


EXCLUDED = st.lists(
    st.sampled_from(
        [
            {"method": "none"},
            {"method": "none", "engine": "llamacpp"},
            {"engine": "llamacpp"},
            {"threads": 2},
            {"method": "none", "threads": 2, "kv_cache": "model"},
            {"attention": "eager"},
            {"kv_cache": "model"},
            {"decode_mode": "compiled"},
            {"model": "tiny", "engine": "llamacpp"},
        ]
    ),
    min_size=1,
    max_size=3,
)
HERE = [name for name in engine_names() if not engine(name).remote]
ENGINES = [*HERE, {"transformers": {"attention": "eager"}}, {"llamacpp": {"threads": [1, 2]}}]
ON_ENGINES = {*HERE, "transformers attention=eager", "llamacpp threads=1", "llamacpp threads=2"}


@given(RECIPES.map(possible), EXCLUDED)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_exclude_leaves_out_the_control_of_an_engine(folder: Folder, recipe: Any, excluded: Any) -> None:
    """Quality on every text, and speed in every decode mode, with all parameters of all engines."""
    modes = ["eager", "compiled"]
    perplexity = [{"text": "demo", "context": 64, "windows": 2}, {"text": "demo", "context": 32, "windows": 2}]
    measure = {**recipe["measure"], "perplexity": perplexity, "divergence": {}}
    label = {"models": [{**recipe["models"][0], "label": "tiny"}]}
    whole = {**recipe, **label, "engines": ENGINES, "decode_mode": modes, "kv_cache": ["model", "int8"]}
    planned = folder.plan({**whole, "measure": measure, "exclude": excluded, "repetitions": 1})
    controls = [run.spec for run in planned if run.spec.kind in ("quality", "performance") and run.spec.is_baseline]
    scored = [(spec.engine_label, spec.perplexity.context) for spec in controls if spec.perplexity]
    assert sorted(scored) == sorted((engine, context) for engine in ON_ENGINES for context in (32, 64))
    timed = [(spec.engine_label, spec.decode_mode) for spec in controls if spec.throughput]
    assert sorted(timed) == sorted((engine, mode) for engine in ON_ENGINES for mode in modes)


RTN = MethodRef("rtn", 1, {"bits": 4, "group_size": 64}, "rtn bits=4", "offline")
CALIBRATED = CalibrationRef(TextRef("c4", path="/c4.txt", sha256="e" * 64), "concat", "auto", False, 128, 512, 0)


@pytest.fixture
def spec(bench: Bench) -> RunSpec:
    made: RunSpec = bench.spec("quality", RTN)
    return made


def shown(*specs: RunSpec) -> list[str]:
    found = labels((spec.variant, spec.decode_mode) for spec in specs)
    return [found[spec.variant.key, spec.decode_mode] for spec in specs]


def test_a_label_is_the_method_alone_where_nothing_else_has_its_name(spec: RunSpec) -> None:
    with_skip = changed(spec, method=replace(RTN, params={"bits": 3}, label="rtn bits=3"), skip=("lm_head",), seed=4)
    assert shown(spec, with_skip) == ["rtn bits=4", "rtn bits=3"]


def test_a_label_names_only_the_part_that_tells_rows_apart(spec: RunSpec) -> None:
    assert shown(spec, changed(spec, skip=("b", "a"))) == ["rtn bits=4", "rtn bits=4 · skip a, b"]
    assert shown(spec, changed(spec, seed=1)) == ["rtn bits=4 · seed 0", "rtn bits=4 · seed 1"]
    wider = changed(spec, method=replace(RTN, params={"bits": 4, "group_size": 128}))
    assert shown(spec, wider) == ["rtn bits=4 · group_size=64", "rtn bits=4 · group_size=128"]
    more, other = replace(CALIBRATED, samples=512), replace(CALIBRATED, text=replace(CALIBRATED.text, sha256="f" * 64))
    assert shown(*(changed(spec, calibration=each) for each in (CALIBRATED, more))) == [
        "rtn bits=4 · 128 samples",
        "rtn bits=4 · 512 samples",
    ]
    first, second = shown(*(changed(spec, calibration=each) for each in (CALIBRATED, other)))
    assert first != second
    assert first.startswith("rtn bits=4 · calibration text ")


def test_a_label_always_names_how_a_variant_was_run_where_that_is_not_the_usual_way(spec: RunSpec) -> None:
    assert shown(changed(spec, engine="llamacpp", kv_cache="int8")) == ["rtn bits=4 · int8 cache · llamacpp"]


def test_two_differences_that_one_part_cannot_tell_apart_are_both_named(spec: RunSpec) -> None:
    rows = [changed(spec, seed=seed, skip=skip) for seed in (0, 1) for skip in ((), ("lm_head",))]
    assert shown(*rows) == [
        "rtn bits=4 · seed 0",
        "rtn bits=4 · skip lm_head · seed 0",
        "rtn bits=4 · seed 1",
        "rtn bits=4 · skip lm_head · seed 1",
    ]
    assert shown(*rows[:1], rows[3]) == ["rtn bits=4", "rtn bits=4 · skip lm_head"]


def test_the_order_of_overrides_counts_and_that_of_skips_does_not(spec: RunSpec) -> None:
    """The last pattern that matches a module wins; a module is skipped whichever pattern names it."""
    patterns = {"*.q_proj": {"bits": 8}, "*.0.*": {"bits": 2}}
    turned = dict(reversed(patterns.items()))
    assert changed(spec, overrides=patterns).variant.key != changed(spec, overrides=turned).variant.key
    assert changed(spec, skip=("a", "b")).variant.key == changed(spec, skip=("b", "a", "b")).variant.key


def test_what_was_quantized_once_serves_every_engine_and_cache(spec: RunSpec) -> None:
    other = changed(spec, engine="llamacpp", kv_cache="int8").variant
    assert other.artifact_key == spec.variant.artifact_key
    assert other.key != spec.variant.key


def test_two_revisions_of_one_hub_checkpoint_have_two_labels(spec: RunSpec) -> None:
    """The content of what lies on a hub begins with its name."""
    rows = []
    for revision in ("a" * 40, "b" * 40):
        model = replace(spec.model, content=f"Qwen/Qwen3-4B-AWQ@{revision}", revision=revision, kind="hub")
        rows.append(changed(spec, method=MethodRef("checkpoint", 1, {}, "checkpoint Qwen3-4B-AWQ", "published", model)))
    first, second = shown(*rows)
    assert first != second


def test_parts_that_differ_only_in_type_still_make_two_labels(spec: RunSpec) -> None:
    one, other = (changed(spec, overrides={"*.q_proj": {"bits": bits}}) for bits in (8, "8"))
    first, second = shown(one, other)
    assert first != second
