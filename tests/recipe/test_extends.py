"""Recipes that extend another file: what is merged, where a value came from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.api.plan import plan
from harness.errors import RecipeError
from harness.planning.expand import baseline
from harness.planning.workloads import perplexities, tasks
from harness.recipe import Recipe, file_schema, load_recipe
from harness.recipe.extends import merge

BASE = """\
name: base
models: [{id: model-a, dtype: float32}]
methods: [none, {rtn: {bits: [8, 4], group_size: 32}}]
measure:
  perplexity: {text: demo, context: 64, windows: 2}
  divergence: {}
limits: {time: 10m, memory: 8GiB}
"""

SCALARS = st.one_of(st.integers(0, 9), st.text("ab", max_size=2), st.lists(st.integers(0, 9), max_size=2))
SHAPES = st.recursive(
    st.just("leaf"), lambda inner: st.dictionaries(st.sampled_from("wxyz"), inner, max_size=4), max_leaves=12
)


@st.composite
def files_of_one_shape(draw: st.DrawFn, count: int) -> list[dict[str, Any]]:
    """Mappings in which a key, wherever it occurs, is always a mapping or never one, as in recipes."""
    shape = draw(st.dictionaries(st.sampled_from("wxyz"), SHAPES, max_size=4))

    def filled(shape: Any) -> Any:
        if shape == "leaf":
            return draw(SCALARS)
        return {key: filled(inner) for key, inner in shape.items() if draw(st.booleans())}

    return [filled(shape) for _ in range(count)]


def leaves(value: dict[str, Any], at: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every value that is no mapping, by its keys."""
    found: dict[tuple[str, ...], Any] = {}
    for key, inner in value.items():
        found |= leaves(inner, (*at, key)) if isinstance(inner, dict) else {(*at, key): inner}
    return found


@given(files_of_one_shape(3))
def test_a_chain_means_the_same_from_either_end(files: list[dict[str, Any]]) -> None:
    first, second, third = files
    assert merge(merge(first, second), third) == merge(first, merge(second, third))


@given(files_of_one_shape(1))
def test_an_empty_file_changes_nothing_on_either_side(files: list[dict[str, Any]]) -> None:
    assert merge(files[0], {}) == files[0] == merge({}, files[0])
    assert merge(files[0], files[0]) == files[0]


@given(files_of_one_shape(2))
def test_each_value_is_the_upper_files_where_it_has_one(files: list[dict[str, Any]]) -> None:
    base, over = files
    before = json.dumps(base)
    assert leaves(merge(base, over)) == leaves(base) | leaves(over)
    assert json.dumps(base) == before


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    write("base.yaml", BASE)
    return write


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_mappings_are_merged_and_lists_and_words_replaced(write) -> None:
    recipe = load_recipe(
        write(
            "r.yaml",
            "name: r\nextends: base.yaml\nmethods: [none, int8]\nmeasure: {perplexity: {context: 128}, memory: {}}\n",
        )
    )
    assert (recipe.name, recipe.models[0].id, recipe.limits.memory) == ("r", "model-a", 8 * 2**30)
    assert [entry.name for entry in recipe.methods] == ["none", "int8"]
    (scored,) = recipe.measure.perplexity
    assert (scored.text.name, scored.context, scored.windows) == ("demo", 128, 2)
    assert recipe.measure.divergence is not None
    assert recipe.measure.memory is not None
    assert recipe.extends is None


def test_null_takes_an_inherited_key_away(write) -> None:
    recipe = load_recipe(
        write(
            "r.yaml",
            "name: r\nextends: base.yaml\nlimits: null\nmeasure: {divergence: ~, perplexity: {windows: null}}\n",
        )
    )
    assert recipe.limits.time is None
    assert recipe.measure.divergence is None
    assert recipe.measure.perplexity[0].windows is None


def test_a_chain_is_read_from_its_far_end(write) -> None:
    write("near.yaml", "extends: base.yaml\nmeasure: {perplexity: {context: 128, windows: 3}}\nseed: 4\n")
    recipe = load_recipe(write("r.yaml", "name: r\nextends: near.yaml\nmeasure: {perplexity: {windows: 5}}\n"))
    (scored,) = recipe.measure.perplexity
    assert (scored.text.name, scored.context, scored.windows, recipe.seed) == ("demo", 128, 5, 4)


def test_the_path_begins_at_the_file_that_has_it_or_at_the_home_folder(write, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write("home/shared/mid.yaml", "extends: ../../base.yaml\nseed: 7\n")
    assert load_recipe(write("deep/er/r.yaml", "name: r\nextends: ~/shared/mid.yaml\n")).seed == 7


def test_a_relative_path_begins_at_the_file_that_it_is_written_in(write, tmp_path: Path) -> None:
    write("shared/own.txt", "a text of the shared folder\n")
    write("mine/own.txt", "another text\n")
    write("shared/task.yaml", "task: own_task\n")
    write(
        "shared/base.yaml",
        BASE.replace("text: demo", "text: own.txt").replace(
            "  divergence: {}\n", "  tasks: [{name: ./task.yaml, data: own.txt}]\n"
        ),
    )
    inherits = load_recipe(write("mine/a.yaml", "name: a\nextends: ../shared/base.yaml\n"))
    assert perplexities(inherits)[0].text.path == str(tmp_path / "shared" / "own.txt")
    assert inherits.folder_of(("models", 0, "id")) == tmp_path / "shared"
    overrides = load_recipe(
        write("mine/b.yaml", "name: b\nextends: ../shared/base.yaml\nmeasure: {perplexity: {text: own.txt}}\n")
    )
    assert perplexities(overrides)[0].text.path == str(tmp_path / "mine" / "own.txt")
    mixed = load_recipe(
        write(
            "mine/c.yaml",
            "name: c\nextends: ../shared/base.yaml\nmeasure: {perplexity: {text: {file: own.txt, field: body}}}\n",
        )
    )
    on_mixed = load_recipe(
        write("d.yaml", "name: d\nextends: mine/c.yaml\nmeasure: {perplexity: {text: {field: words}}}\n")
    )
    assert perplexities(mixed)[0].text.path == perplexities(on_mixed)[0].text.path == str(tmp_path / "mine/own.txt")
    assert perplexities(on_mixed)[0].text.field == "words"
    pytest.importorskip("lm_eval")
    (task,) = tasks(inherits)
    assert (task.definition, task.data.path) == (str(tmp_path / "shared/task.yaml"), str(tmp_path / "shared/own.txt"))


def test_the_example_plans_what_its_two_files_say_together() -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    small, full = load_recipe(recipes / "quickstart.yaml"), load_recipe(recipes / "quickstart-full.yaml")
    assert full.models == small.models
    assert full.measure.perplexity[0].protocol == small.measure.perplexity[0].protocol
    assert full.measure.perplexity[0].windows is None
    assert full.measure.throughput.warmup == small.measure.throughput.warmup
    assert len(full.methods) > len(small.methods)
    assert full.name == "quickstart-full"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "name: r\nextends: base.yaml\nmeasure:\n  perplexity: {contxt: 9}\n",
            "r.yaml:4: measure.perplexity.contxt: unknown",
        ),
        ("name: r\nextends: bad.yaml\n", "bad.yaml:3: methods: expected at least one entry"),
        ("name: r\nextends: part.yaml\n", "r.yaml:1: models: this key is missing"),
        ("name: r\nextends: base.yaml\nmodels: null\n", "r.yaml:3: models: this key is missing"),
        ("extends: base.yaml\n", "r.yaml:1: name: this key is missing"),
        (
            "name: r\nextends: base.yaml\nprice: null\n",
            "r.yaml:3: null removes a key inherited through 'extends', but 'price' is not",
        ),
        ("name: r\nextends: base.yaml\nlimits:\n", "r.yaml:3: the key 'limits' has no value; add one"),
        ("name: r\nextends: absent.yaml\n", "r.yaml:2: extends: expected the path of a recipe file; there is no file "),
        ("name: r\nextends: .\n", "r.yaml:2: extends: expected the path of a recipe file; there is no file "),
        ("name: r\nextends: [base.yaml]\n", "r.yaml:2: extends: expected the path of a recipe file, not ['base.yaml']"),
        ("name: r\nextends: ''\n", "r.yaml:2: extends: expected the path of a recipe file, not ''"),
        ("name: r\nextends: ~no_such_user/x.yaml\n", "r.yaml:2: extends: '~no_such_user/x.yaml' is not a path"),
        ("name: r\nextends: list.yaml\n", "list.yaml:1: a recipe is a mapping of keys to values"),
        (
            "name: r\nextends: r.yaml\n",
            "r.yaml:2: extends: the files extend each other in a circle: r.yaml extends r.yaml",
        ),
        (
            "name: r\nextends: loop-a.yaml\n",
            "loop-b.yaml:1: extends: the files extend each other in a circle: "
            "r.yaml extends loop-a.yaml extends loop-b.yaml extends loop-a.yaml",
        ),
        (
            "name: r\nextends: base.yaml\nmeasure: {perplexity: {text: {name: demo, file: x.txt}}}\n",
            "r.yaml:3: measure.perplexity.text: expected exactly one of name, file, hub and generated",
        ),
    ],
)
def test_what_is_wrong_names_the_file_and_line_it_was_written_in(write, text: str, expected: str) -> None:
    write("bad.yaml", BASE.replace("[none, {rtn: {bits: [8, 4], group_size: 32}}]", "[]"))
    write("part.yaml", "seed: 1\n")
    write("list.yaml", "- a\n")
    write("loop-a.yaml", "extends: loop-b.yaml\n")
    write("loop-b.yaml", "extends: loop-a.yaml\n")
    assert expected in refusal(write("r.yaml", text))


def test_the_planner_too_names_the_file_that_wrote_a_value(write, tmp_path: Path) -> None:
    path = write("sub/r.yaml", "name: r\nextends: ../base.yaml\nbaseline: int8\n")
    with pytest.raises(RecipeError, match=r"base\.yaml:2: models\[0\]\.id: model not found: 'model-a' .*/model-a,"):
        plan(load_recipe(write("sub/s.yaml", "name: s\nextends: ../base.yaml\n")))
    with pytest.raises(RecipeError, match=r"sub/r\.yaml:3: baseline: expected one unquantized variant"):
        baseline(load_recipe(path))


def test_a_recipe_that_came_from_no_file_cannot_extend_one() -> None:
    data = {**yaml.safe_load(BASE), "extends": "base.yaml"}
    with pytest.raises(ValueError, match=r"load the recipe with harness\.load_recipe\(PATH\)"):
        Recipe.model_validate_json(json.dumps(data))


def test_the_schema_of_a_file_that_extends_asks_for_its_name_alone(write) -> None:
    schema = json.loads(json.dumps(file_schema(Recipe.model_json_schema())))
    check = jsonschema.Draft202012Validator(schema).is_valid
    part: dict[str, Any] = {
        "name": "r",
        "extends": "base.yaml",
        "measure": {"divergence": None, "tasks": ["hellaswag"]},
        "price": {"currency": "EUR"},
        "gates": {"perplexity": None},
    }
    assert check(part)
    assert not check({key: value for key, value in part.items() if key != "name"})
    assert not check({key: value for key, value in part.items() if key != "extends"})
    assert not check({**part, "measure": {"tasks": [{"fewshot": 5}]}})  # the entries of a list are whole
    assert not check({**part, "measure": {"perplexity": {"contxt": 3}}})
    assert check(yaml.safe_load(BASE))
    assert not check({**yaml.safe_load(BASE), "price": {"currency": "EUR"}})
