"""``recipe_of`` undoes ``plan``: the recipe that it makes of runs asks the same questions and no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_specs import run_spec

from harness.api.plan import plan
from harness.core.run import RunSpec
from harness.core.site import Machine
from harness.errors import UsageError
from harness.planning import recipe_of as inverse
from harness.planning.recipe_of import recipe_of
from harness.recipe import Recipe, load_recipe
from harness.recipe.fields import MAX_ENTRIES

RECIPES = Path(__file__).parents[2] / "recipes"
CPU = Machine("cpu", "a test", memory_bytes=2**36)


def planned(recipe: Recipe) -> list[RunSpec]:
    return [run.spec for run in plan(recipe, CPU)]


def again(specs: Sequence[RunSpec], place: Any = lambda content: getattr(content, "path", None)) -> list[RunSpec]:
    return planned(Recipe.model_validate_json(json.dumps(recipe_of(specs, place))))


def asked(specs: Sequence[RunSpec]) -> set[tuple[str, int, str]]:
    """What is asked, how often, and as whom a table shows it."""
    return {(each.case_id, each.repetition, each.title) for each in specs}


@pytest.mark.parametrize("name", ["example", "methods-cpu", "synthetic-llama", "synthetic-bits"])
def test_the_recipe_of_a_plan_plans_the_same(name: str) -> None:
    specs = planned(load_recipe(RECIPES / f"{name}.yaml"))
    assert asked(again(specs)) == asked(specs)


def test_every_setting_of_a_recipe_is_found_again(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("Some text of mine.\n" * 50)
    recipe = {
        "name": "all",
        "models": [{"id": str(tiny), "label": "first", "dtype": "float32", "degrid": 3}, str(tiny)],
        "methods": [
            "none",
            {"rtn": {"bits": [8, 4], "group_size": 32, "symmetric": True}},
            {"gptq": {"group_size": 32}},
        ],
        "engines": ["transformers", {"llamacpp": {"threads": [1, 2]}}],
        "baseline": {"none": {"dtype": "float32"}},
        "kv_cache": ["model", "int8"],
        "decode_mode": ["eager", "compiled"],
        "scope": {"quantize": "decoder", "skip": "*.down_proj", "overrides": {"*.o_proj": {"bits": 8}}},
        "calibration": {"text": "demo_calibration", "samples": 4, "length": 32, "seed": 7},
        "measure": {
            "perplexity": [
                {"text": str(tmp_path / "own.txt"), "context": 32, "protocol": "sliding", "stride": 8, "windows": 3},
                {"text": "demo", "context": 64, "bos": "never"},
                {"text": {"generated": {"prompts": str(tmp_path / "own.txt"), "answers": 2, "tokens": 64, "seed": 3}}},
                {"text": {"generated": {"temperature": 0, "chat_template": True}}},
            ],
            "divergence": {},
            "memory": {"budget": "1GiB"},
            "energy": {},
            "throughput": {"batch_sizes": [1, 2], "prompt_tokens": [8, 16], "new_tokens": 4, "warmup": 2},
            "serving": {
                "arrival": "poisson",
                "rates": [0.5, 4],
                "prompts": {"text": str(tmp_path / "own.txt"), "tokens": "rows"},
                "duration": "30s",
                "slo": {"ttft": "500ms", "attainment": "95%"},
                "bisect": 2,
            },
        },
        "repetitions": 2,
        "limits": {"time": "90s", "memory": "2GiB"},
        "device": "cpu",
        "threads": 1,
        "attention": "eager",
        "seed": 5,
        "price": {"per_hour": 2.5, "currency": "EUR"},
        "gates": {"perplexity": "0.5%"},
    }
    specs = planned(Recipe.model_validate_json(json.dumps(recipe)))
    found = again(specs)
    assert asked(found) == asked(specs)
    assert {json.dumps(str((each.limits, each.readers))) for each in found} == {
        json.dumps(str((each.limits, each.readers))) for each in specs
    }
    assert {each.run_id for each in found} == {each.run_id for each in specs}
    assert Recipe.model_fields.keys() - recipe_of(specs).keys() == {"extends"}


def test_a_recipe_of_more_variants_than_a_list_of_entries_may_have(tiny: Path) -> None:
    """Some of the product is left out, so that one entry is not enough."""
    lists = {"bits": [8, 4, 3, 2], "group_size": [8 * n for n in range(1, 17)], "symmetric": [True, False]}
    threads = [{"llamacpp": {"threads": each}} for each in range(1, 4)]
    recipe = {
        "name": "many",
        "models": [str(tiny)],
        "methods": ["none", {"rtn": lists}, {"gguf": {"type": ["Q8_0", "Q4_0"]}}],
        "engines": ["transformers", *threads],
        "measure": {"perplexity": {"text": "demo", "context": 64}},
        "exclude": [{"method": "rtn", "bits": 4, "symmetric": True}, {"group_size": 16, "bits": 8}],
        "device": "cpu",
    }
    specs = planned(Recipe.model_validate_json(json.dumps(recipe)))
    found = recipe_of(specs)
    assert len({each.variant.key for each in specs if each.kind == "quality"}) > MAX_ENTRIES
    assert len(found["methods"]) < 8
    assert found["engines"] == ["transformers", {"llamacpp": {"threads": [1, 2, 3]}}]
    assert asked(again(specs)) == asked(specs)


ROWS = st.sets(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1)


@given(ROWS)
def test_entries_expand_to_just_what_they_were_made_of(rows: set[tuple[str, int, int, bool]]) -> None:
    """Also where some leave a parameter out."""
    entries = [(name, {"x": x, "y": y} if has else {"y": y}) for name, x, y, has in sorted(rows)]
    expanded: list[tuple[str, dict[str, int]]] = []
    for entry in inverse._listed(entries):
        ((name, params),) = entry.items() if isinstance(entry, dict) else ((entry, {}),)
        values = [each if isinstance(each, list) else [each] for each in params.values()]
        expanded += [(name, dict(zip(params, combination, strict=True))) for combination in product(*values)]
    assert sorted(expanded, key=str) == sorted({str(each): each for each in entries}.values(), key=str)


def test_entries_of_a_product_become_one() -> None:
    entries = [("rtn", {"bits": bits, "group_size": size}) for size in range(16) for bits in range(16)]
    ((entry),) = inverse._listed([*entries, ("none", {}), *entries])[:1]
    assert entry == {"rtn": {"bits": list(range(16)), "group_size": list(range(16))}}


def test_what_a_recipe_excludes_is_not_asked_again(tiny: Path) -> None:
    recipe = {
        "name": "some",
        "models": [{"id": str(tiny), "label": "first", "degrid": 3}, {"id": str(tiny), "label": "second"}],
        "methods": ["none", {"none": {"dtype": "float16"}}, {"rtn": {"bits": [8, 4], "group_size": 32}}, "gguf"],
        "engines": ["transformers", {"llamacpp": {"threads": [1, 2]}}],
        "measure": {"perplexity": {"text": "demo", "context": 64}, "throughput": {"prompt_tokens": 8, "new_tokens": 4}},
        "kv_cache": ["model", "int8"],
        "decode_mode": ["eager", "compiled"],
        "device": "cpu",
    }
    exclude = [
        {"method": "rtn", "bits": 4, "model": "first"},
        {"method": "none", "dtype": "float16", "engine": "llamacpp"},
        {"engine": "llamacpp", "threads": 2, "kv_cache": "int8"},
        {"method": "rtn", "decode_mode": "compiled"},
        {"model": "second", "method": "gguf"},
    ]
    every, specs = (
        planned(Recipe.model_validate_json(json.dumps({**recipe, "exclude": each}))) for each in ([], exclude)
    )
    assert asked(specs) < asked(every)
    assert asked(again(specs)) == asked(specs)
    entries = recipe_of(specs)["exclude"]
    assert {"threads": 2, "kv_cache": "int8"} in entries
    assert {"method": "rtn", "decode_mode": "compiled"} in entries
    assert len(entries) < 10, "none for each of the 40 variants that are left out"


def test_more_than_a_hundred_exclusions_are_all_found_again(tiny: Path) -> None:
    """Each of 128 variants has one of two caches, in turn, so that no entry leaves out two combinations."""
    bits, sizes, caches = (8, 4, 3, 2), range(8, 8 * 33, 8), ("model", "int8")
    left_out = [
        {"method": "rtn", "bits": width, "group_size": size, "kv_cache": caches[(i + j) % 2]}
        for (i, width), (j, size) in product(enumerate(bits), enumerate(sizes))
    ]
    recipe = {
        "name": "some",
        "models": [str(tiny)],
        "methods": ["none", {"rtn": {"bits": list(bits), "group_size": list(sizes)}}],
        "measure": {"perplexity": {"text": "demo", "context": 64}},
        "kv_cache": list(caches),
        "exclude": left_out,
        "device": "cpu",
    }
    specs = planned(Recipe.model_validate_json(json.dumps(recipe)))
    assert len(recipe_of(specs)["exclude"]) == len(left_out) == 128
    assert asked(again(specs)) == asked(specs)


@pytest.mark.parametrize("residency", ["resident", "streamed"])
def test_a_recipe_says_whether_models_were_streamed(tiny: Path, residency: str) -> None:
    scored = {"perplexity": {"text": "demo", "context": 64, "windows": 2}, "divergence": {}}
    recipe = {"name": "some", "models": [str(tiny)], "methods": ["none", "rtn"], "residency": residency}
    specs = planned(Recipe.model_validate_json(json.dumps({**recipe, "measure": scored})))
    assert recipe_of(specs)["residency"] == residency
    assert [spec.job.conditions.residency for spec in again(specs)] == [spec.job.conditions.residency for spec in specs]


def test_a_recipe_of_models_that_were_streamed_where_they_had_to_be_leaves_it_to_the_plan() -> None:
    whole, cut = run_spec("quality"), run_spec("quality", residency="streamed")
    assert recipe_of([whole])["residency"] == "resident"
    assert recipe_of([cut])["residency"] == "streamed"
    assert recipe_of([cut, run_spec("quantize")])["residency"] == "streamed", "its library may take only a whole model"
    assert recipe_of([whole, cut])["residency"] == "auto"
    assert recipe_of([run_spec("quantize", residency="streamed"), whole])["residency"] == "auto"
    assert recipe_of([cut, run_spec("performance")])["residency"] == "auto", "speeds are those of a whole model"


def test_models_and_texts_may_be_elsewhere(tiny: Path, tmp_path: Path) -> None:
    specs = planned(load_recipe(RECIPES / "example.yaml"))
    moved = {specs[-1].model.content: "/elsewhere/model"}
    data = recipe_of(specs, lambda content: moved.get(getattr(content, "content", "")))
    assert [model["id"] for model in data["models"]] == ["/elsewhere/model"]
    assert data["measure"]["perplexity"][0]["text"] == {"name": "demo"}


def test_a_whole_recipe_asks_the_same_without_knowing_any_default() -> None:
    specs = planned(load_recipe(RECIPES / "methods-cpu.yaml"))
    whole = recipe_of(specs, lambda content: getattr(content, "path", None), whole=True)
    found = planned(Recipe.model_validate_json(json.dumps(whole)))
    assert {(each.case_id, each.repetition) for each in found} == {(each.case_id, each.repetition) for each in specs}


def test_runs_of_no_variant_have_no_recipe() -> None:
    machine = [each for each in planned(load_recipe(RECIPES / "example.yaml")) if each.kind == "machine"]
    with pytest.raises(UsageError, match="no run is of a variant"):
        recipe_of(machine)
