"""What is wrong in a recipe ends as a short, printable message and exit code 2, within seconds and little memory."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import fuzz_recipe
import fuzzing
import pytest
from elsewhere import Elsewhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness import plugins
from harness.core.plain import MAX_DEPTH, MAX_VALUES, fault_in
from harness.errors import RecipeError, UsageError
from harness.planning import expand
from harness.planning import plan as planning
from harness.planning.estimate import chosen
from harness.planning.plan import plan
from harness.recipe import Recipe, load_recipe

CORPUS = tuple(path.read_bytes() for path in sorted((fuzzing.HERE / "corpus" / "recipe").iterdir()))
BASE = """\
name: r
models: [tiny]
methods: [none, {rtn: {bits: 4, group_size: 32}}]
measure: {perplexity: {context: 64}, throughput: {}}
"""


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(CORPUS), st.randoms(use_true_random=False), st.integers(1, 3))
def test_a_mutated_recipe_is_planned_or_refused(content: bytes, random: Random, times: int) -> None:
    for _ in range(times):
        content = fuzz_recipe.mutate(content, random)
    fuzzing.check(fuzz_recipe.read, content)


@settings(max_examples=60)
@given(st.text(st.characters(codec="utf-8"), max_size=40), st.integers(0, len(BASE)))
def test_any_text_anywhere_is_planned_or_refused(text: str, place: int) -> None:
    fuzzing.check(fuzz_recipe.read, (BASE[:place] + text + BASE[place:]).encode())


def refusal(folder: Path, text: str) -> str:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    if not (folder / "tiny").exists():
        (folder / "tiny").symlink_to(fuzz_recipe.MODEL)
    with pytest.raises(RecipeError) as caught:
        plan(load_recipe(path), Elsewhere())
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: r", r'name: "\U00110000"', "r.yaml:1: not valid YAML: an escape names no character"),
        ("name: r", r'name: "\uD800"', r"r.yaml:1: expected text without control characters, not '\ud800'"),
        ("name: r", "name: " + "r" * 101, "r.yaml:1: name: expected at most 100 characters, not 101"),
        (
            "[tiny]",
            r'[{id: tiny, label: "\e[1m"}]',
            r"r.yaml:2: expected text without control characters, not '\x1b[1m'",
        ),
        ("[tiny]", '[{id: tiny, label: ""}]', "r.yaml:2: models[0].label: expected text, not ''"),
        ("[tiny]", '["a\\nb"]', r"r.yaml:2: models[0].id: expected text without control characters, not 'a\nb'"),
        ("bits: 4", "bits: !!int ''", "r.yaml:3: '' cannot be read; put it in quotes if it is text"),
        (
            "bits: 4",
            "bits: 1:59:59:59:59:59:59:59:59:59:59:59:59",
            "r.yaml:3: expected a whole number of at most 63 bits",
        ),
        ("bits: 4", "<<: {bits: 4}", "r.yaml:3: '<<' is not supported; 'extends' builds on another file"),
        (
            "{bits: 4, group_size: 32}",
            "!!map x",
            "r.yaml:3: not valid YAML for a recipe: the tag !!map is not supported",
        ),
        ("context: 64", "? {} : 64", "r.yaml:4: a key must be a plain word"),
        (
            "throughput: {}",
            "throughput: {batch_sizes: 65536, prompt_tokens: 512}",
            "at most 16777216 tokens in a batch",
        ),
        ("throughput: {}", "throughput: {iterations: 100000}", "iterations: expected less than or equal to 10000"),
        ("group_size: 32", "group_size: 1048577", "group_size: expected less than or equal to 1048576, not 1048577"),
        ("name: r", "name: r\nrepetitions: 1000000", "r.yaml:2: repetitions: expected less than or equal to 1000"),
        ("name: r", "name: r\nexclude: [{bits: [4]}]", "r.yaml:2: exclude[0].bits: expected a single value, not [4]"),
        ("name: r", "name: r\nexclude: " + "[" * 33 + "]" * 33, "r.yaml:2: not valid YAML: nested more than 32 levels"),
        ("name: r", "name: r\nseed: 4294967296", "r.yaml:2: seed: expected less than or equal to 4294967295"),
        (
            "name: r",
            "name: r\nkey: " + "x" * 2**17,
            "r.yaml: larger than 131072 bytes, the most that such a file may have",
        ),
        ("[tiny]", "[" + "tiny," * 101 + "]", "r.yaml:2: models: expected at most 100 entries, not 101"),
    ],
)
def test_a_value_outside_its_limits_is_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in BASE
    assert expected in refusal(tmp_path, BASE.replace(old, new, 1))


def test_a_plan_is_counted_before_it_is_expanded(tmp_path: Path) -> None:
    many = ",".join(["4"] * 3000)
    text = BASE.replace("bits: 4, group_size: 32", f"bits: [{many}], group_size: [{many}], symmetric: [true, false]")
    message = f"expands to {2 * 3000**2 + 1} combinations of parameters, and the limit is {expand.MAX_VARIANTS}"
    assert f"r.yaml:3: methods: {message}" in refusal(tmp_path, text)
    text = f"{BASE}repetitions: 1000\nkv_cache: [model, int8]\ndecode_mode: [eager, compiled]\n"
    message = f"plans {4 * (1 + 2000)} runs: 4 variants × (1 texts and tasks + 2000 repetitions)"
    assert f"r.yaml:1: {message}, and the limit is {planning.MAX_RUNS}" in refusal(tmp_path, text)


def test_the_limits_of_files_hold_for_all_that_a_recipe_extends(tmp_path: Path) -> None:
    (tmp_path / "9.yaml").write_text(BASE)
    for number in range(9):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    assert "1.yaml:1: extends: a recipe is made of at most 8 files" not in refusal(
        tmp_path, "name: r\nextends: 4.yaml\n6: 1"
    )
    assert "6.yaml:1: extends: a recipe is made of at most 8 files" in refusal(tmp_path, "name: r\nextends: 0.yaml\n")
    entries = ",".join("1" for _ in range(MAX_VALUES // 2))
    (tmp_path / "9.yaml").write_text(f"a: [{entries}]\n")
    assert "together the files hold more than 20000 values" in refusal(tmp_path, f"extends: 9.yaml\nb: [{entries}]\n")


def test_many_faults_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    message = refusal(tmp_path, BASE + "".join(f"k{number}: 1\n" for number in range(500)))
    assert len(message) < fuzzing.LIMIT_MESSAGE
    *listed, last = message.splitlines()
    assert last == f"and {500 - len(listed)} more"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a\nb"},
        {"name": "a/b"},
        {"repetitions": 1_000_000},
        {"seed": 10**5000},
        {"models": ({"id": "a\0b"},)},
        {"models": ({"id": "tiny", "label": "\x1b[31m"},)},
        {"models": ({"id": "synthetic:llama", "config": {"hidden_size": float("nan")}},)},
        {"methods": ({"rtn": {"bits": object()}},)},
        {"methods": ({"rtn": {"bits": 10**400}},)},
        {"exclude": ({"method": ["rtn"]},)},
        {"scope": {"overrides": {"*": {"bits": {4: 4}}}}},
        {"gates": {"perplexity": float("inf")}},
    ],
)
def test_a_recipe_made_in_python_has_the_same_limits(change: dict[str, object]) -> None:
    whole = {"name": "r", "models": ("tiny",), "methods": ("none",), "measure": {"memory": {}}}
    Recipe.model_validate(whole)
    with pytest.raises(ValidationError):
        Recipe.model_validate({**whole, **change})


def test_plain_data_is_what_yaml_and_json_can_hold() -> None:
    deep: object = 1
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    assert fault_in(deep) is None
    assert fault_in([deep]) == f"expected at most {MAX_DEPTH} levels of nesting"
    circle: list[object] = []
    circle.append(circle)
    assert fault_in(circle) is not None
    assert fault_in([0] * (MAX_VALUES - 1)) is None
    assert fault_in([0] * MAX_VALUES) == f"expected at most {MAX_VALUES} keys and values"
    assert fault_in({1: 2}) == "expected keys that are text"
    assert fault_in({"a": {1}}) == "expected text, numbers, lists and mappings"
    assert fault_in({"a": "línea\n", "b": ["é", 2**63 - 1, 0.5, True, None]}) is None


def parsed(written: str) -> Any:
    """The parameters that a method's name and values mean; None if they are refused, as they should be."""
    try:
        return chosen.parse(written).params
    except UsageError as error:
        message = str(error)
    assert message.isprintable()
    return None


@pytest.mark.parametrize("name", plugins.method_names())
def test_no_value_of_a_parameter_ends_an_estimate_in_a_traceback(name: str) -> None:
    """Each is rejected, or gives bits and bytes that are finite: for any width that a matrix can have."""
    method = plugins.method(name)
    for key in method.params.model_fields:
        for value in (
            "0",
            "1",
            "-1",
            "9" * 18,
            "9" * 5000,
            "1.0e+308",
            "1.0e-308",
            "''",
            "[]",
            "{}",
            "null",
            "true",
            "channel",
        ):
            params = parsed(f"{name} {key}={value}")
            if params is None:
                continue
            method.needs(params)
            for width in (1, 31, 4096, 2**24):
                assert 0 < method.bits_per_weight(params, 16.0, width) < 1e9
                beside = method.beside(params, 16.0, (width, width))
                assert 0 <= beside.memory + beside.disk + beside.modules < 1e18


def test_what_blocks_or_never_ends_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(100_000_000)
    for name in ("pipe.yaml", "loop.yaml", "huge.yaml", "/dev/zero", "/dev/stdin", "a\0b", "x" * 300, "x/" * 2500, "."):
        with pytest.raises(RecipeError) as caught:
            load_recipe(tmp_path / name)
        assert str(caught.value).isprintable()
