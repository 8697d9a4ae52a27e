"""Every code makes its sentence, and every sentence that schema 1 could hold becomes its code and arguments again."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness
from harness.core.label import FACTS, IMPLAUSIBLE, LABELS, Fact, FactCode, Form, Label, LabelCode, codes
from harness.core.upgrade import labels as upgraded
from harness.core.upgrade import upgrade
from harness.storage.json_codec import decode, encode

COUNT = st.integers(0, 10**6)
WORD = st.from_regex(r"[A-Za-z][A-Za-z0-9_.*]{0,11}", fullmatch=True)
TEXT = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=30)
NAMES = st.lists(WORD, min_size=1, max_size=3)
SHARE = st.integers(0, 10**5).map(lambda part: part / 10**5)
PERCENT = st.integers(0, 100).map(lambda part: part / 100)
DIFFERENCE = {
    "relative": st.integers(0, 999).map(lambda part: float(f"{part / 1000:.3g}")),
    "kl": st.integers(1, 999).map(lambda part: float(f"{part * 1e-7:.3g}")),
    "loss_kept": st.integers(0, 10**6).map(lambda part: part / 10**4),
    "loss_now": st.integers(0, 10**6).map(lambda part: part / 10**4),
}
VALUE = st.one_of(st.integers(-9, 99), st.booleans(), st.none(), WORD.filter(lambda text: text.lower() != "nan"))
DIFFERS = "logits by {relative:.3g} of the largest, KL {kl:.3g} nat, loss {loss_kept:.4f} before and {loss_now:.4f} now"
OVERLAP = "{shared:.3%} of the evaluation's runs of {run_tokens} tokens stand in the calibration"
SHARED = {"shared": SHARE, "run_tokens": st.just(16)}


def suspect(reason: str, sentence: str, **arguments: st.SearchStrategy[Any]) -> tuple[Any, ...]:
    fixed = {"reason": st.just(reason), "of": st.sampled_from(["run", "machine"])}
    return "suspect", "suspect: {whose}" + sentence, fixed | arguments


LIMIT = {"limit": PERCENT}
SCHEMA_1_LABELS: list[tuple[Any, ...]] = [
    (
        "natively_quantized",
        "natively quantized reference: {quantization}{moved}",
        {"quantization": WORD, "degridded": st.booleans()},
    ),
    ("leaked", "calibrated on the evaluation text: " + OVERLAP, SHARED),
    ("little_calibration", "calibrated on {tokens:,} tokens, which is little", {"tokens": COUNT}),
    (
        "calibration_left_out",
        "its library left out {left_out} of {samples} calibration samples",
        {"left_out": COUNT, "samples": COUNT},
    ),
    ("stored_dense", "nothing of it is stored quantized: it has the unquantized model's size and speed", {}),
    (
        "dequantized_on_load",
        "dequantized on load: runs as dense matrices, its memory and speed are not the format's",
        {},
    ),
    ("unpacked_once", "unpacked once: its codes are stored, and dense matrices beside them run", {}),
    (
        "kernel_fell_back",
        "kernel fell back: {layers} layers unpack before each product, "
        "where the method is meant to multiply packed codes",
        {"layers": COUNT, "family": st.just("dequantize"), "expected": st.just("packed")},
    ),
    (
        "reload_differs",
        "the artifact reloaded differs from the model that was saved, harmlessly: " + DIFFERS,
        DIFFERENCE,
    ),
    ("beyond_scope", "quantized beyond the {scope}: {listed}", {"scope": st.just("decoder"), "roles": NAMES}),
    ("left_alone", "left alone: {listed}", {"modules": NAMES}),
    ("overridden", "{pattern}: {parameter}={value}", {"pattern": WORD, "parameter": st.just("bits"), "value": VALUE}),
    (
        "override_not_applied",
        "override not applied: {pattern}: {parameter}={value}",
        {"pattern": WORD, "parameter": st.just("group_size"), "value": VALUE},
    ),
    ("publisher_coverage", "its publisher quantized {fraction:.1%} of the decoder", {"fraction": PERCENT}),
    ("batch_dependent", "depends on the batch; run one window at a time", {}),
    suspect("gpu_clock_fell", "the GPU's clock fell by more than {limit:.0%}", **LIMIT),
    suspect("gpu_held_down", "the GPU held its clocks down: heat or a fault of its power"),
    suspect("gpu_heat", "heat held the GPU's clocks down"),
    suspect("gpu_shared", "another process held the GPU"),
    suspect("cpu_heat", "heat slowed the CPU down"),
    suspect("cpu_shared", "other processes took more than {limit:.0%} of the CPU", **LIMIT),
    suspect("cpu_steal", "the hypervisor gave more than {limit:.0%} of the CPU away", **LIMIT),
    suspect(
        "times_drift",
        "{phase} times drift by more than {limit:.0%} within a process at batch {batch_size}, prompt {prompt_tokens}",
        phase=st.sampled_from(["prefill", "decode"]),
        batch_size=COUNT,
        prompt_tokens=COUNT,
        **LIMIT,
    ),
]
"""The codes, the sentences as schema 1 held them, and what its figures could be. They stay whatever is reworded."""
SCHEMA_1_FACTS: list[tuple[str, str, str, Mapping[str, st.SearchStrategy[Any]]]] = [
    ("attention", "attention", "{implementation}", {"implementation": WORD}),
    ("cpu_threads", "CPU threads", "{threads}", {"threads": COUNT}),
    ("cuda_kernels", "CUDA kernels", "{kernels}", {"names": NAMES}),
    ("key_value_cache", "key-value cache", "{kind}", {"kind": TEXT}),
    ("cache_empty", "KV cache", "none: no tensor was found in it", {}),
    (
        "cache_unlike_shape",
        "KV cache",
        "{bytes_per_token:,.0f} bytes per token; by the model's shape {expected:,} at {element_bytes} bytes",
        {"bytes_per_token": COUNT.map(float), "expected": COUNT, "element_bytes": st.sampled_from([1, 2, 0.5])},
    ),
    (
        "calibration",
        "calibration",
        "{samples} × {length} tokens of {text}, {packing}, seed {seed}, sha256 {sha256}",
        {"samples": COUNT, "length": COUNT, "text": WORD, "seed": COUNT}
        | {"packing": st.sampled_from(["crop", "concat", "first"]), "sha256": st.just("0123456789ab")},
    ),
    (
        "calibration_asked_for",
        "calibration asked for",
        "{samples} samples; the text holds {held}",
        {"samples": COUNT, "held": COUNT},
    ),
    (
        "calibration_consumed",
        "calibration consumed",
        "{samples} of {given} samples, sha256 {sha256}",
        {"samples": COUNT, "given": COUNT, "sha256": st.just("0123456789ab")},
    ),
    ("calibration_overlap", "calibration overlap", OVERLAP, SHARED),
    ("task_overlap", "calibration overlap with {task}", OVERLAP, {"task": WORD} | SHARED),
    (
        "halves_overlap",
        "evaluation halves overlap",
        "{shared:.3%} of the second half's runs of {run_tokens} tokens stand in the first half",
        SHARED,
    ),
    ("reload_difference", "reload difference", DIFFERS, DIFFERENCE),
    ("conversion_difference", "conversion difference", DIFFERS, DIFFERENCE),
    ("source_in_stack", "source in stack {stack}", DIFFERS, {"stack": WORD} | DIFFERENCE),
    ("converted_tokenizer", "tokenizer of the converted model", "{remark}", {"remark": TEXT}),
    (
        "repacked",
        "repacked by the first forward pass",
        "{stored_bytes} to {running_bytes} bytes",
        {"stored_bytes": COUNT, "running_bytes": COUNT},
    ),
    ("quantization_config", "quantization_config", "{text}", {"text": TEXT}),
    ("not_quantized", "not quantized", "{listed}", {"tensors": NAMES}),
    ("attention_not_bound", "bound", "the attention is left out: {reason}", {"reason": TEXT}),
    (
        "energy_not_measured",
        "energy of the {counter}",
        "not measured: {reason}",
        {"counter": st.sampled_from(["GPU", "CPU"]), "reason": TEXT},
    ),
    ("rate_not_measured", "no rate of {dtype}", "{reason}", {"dtype": WORD, "reason": TEXT}),
    (
        "dtype_noise_not_measured",
        "noise floor of another dtype",
        "not measured in {dtype}: {reason}",
        {"dtype": st.sampled_from(["float32", "bfloat16"]), "reason": TEXT},
    ),
    ("plausibility_not_measured", "plausibility of the baseline", "not measured: {reason}", {"reason": TEXT}),
    ("noted", "{name}", "{value}", {"name": st.sampled_from(["training_rows", "quantized_in"]), "value": COUNT}),
]


def written(pattern: str, arguments: Mapping[str, Any]) -> str:
    """As schema 1's code wrote it."""
    listed = arguments.get("roles") or arguments.get("modules") or arguments.get("tensors") or ()
    return pattern.format(
        **arguments,
        listed=", ".join(listed),
        kernels="; ".join(arguments.get("names", ())),
        moved=", degridded" if arguments.get("degridded") else "",
        whose="the machine's own speed: " if arguments.get("of") == "machine" else "",
    )


@given(st.data())
@pytest.mark.parametrize(("code", "sentence", "figures"), SCHEMA_1_LABELS)
def test_a_sentence_of_schema_1_is_its_code_and_arguments(
    code: str, sentence: str, figures: Mapping[str, st.SearchStrategy[Any]], data: st.DataObject
) -> None:
    arguments = data.draw(st.fixed_dictionaries(dict(figures)))
    told = written(sentence, arguments)
    assert upgraded.label(told) == {"code": code, "arguments": arguments}
    assert decode(Label, upgraded.label(told), "label").sentence == told


@given(st.data())
@pytest.mark.parametrize(("code", "name", "value", "figures"), SCHEMA_1_FACTS)
def test_a_fact_of_schema_1_is_its_code_and_arguments(
    code: str, name: str, value: str, figures: Mapping[str, st.SearchStrategy[Any]], data: st.DataObject
) -> None:
    arguments = data.draw(st.fixed_dictionaries(dict(figures)))
    called, told = written(name, arguments), written(value, arguments)
    kept = arguments["value"] if code == "noted" else told  # notes and numbers of threads were kept as they are
    assert upgraded.fact(called, kept) == {"code": code, "arguments": arguments}
    fact = decode(Fact, upgraded.fact(called, kept), "fact")
    assert (fact.name, fact.value) == (called, told)


@given(st.dictionaries(WORD, st.integers(1, 99), min_size=1, max_size=3))
def test_counts_of_layers_and_kernels_are_read(counts: dict[str, int]) -> None:
    told = ", ".join(f"{count} × {name} of Params" for name, count in sorted(counts.items()))
    found = decode(Fact, upgraded.fact("layers", told), "fact")
    assert found.arguments == {f"{name} of Params": count for name, count in counts.items()}
    kernels = decode(Fact, upgraded.fact("kernels", "21 multiply packed codes, 7 dense"), "fact")
    assert kernels.arguments == {"plain": 7, "packed": 21}
    assert kernels.value == "21 multiply packed codes, 7 dense"


def test_all_that_schema_1_could_say_is_covered() -> None:
    counted = {"layers", "kernels"}
    later_facts = {"arithmetic", "kernels_at", "process_shared", "gpu_state_not_reported", "node_lost"}
    later_facts |= {"scales", "experts_seen", "experts_not_counted", "routers_not_read", "other_inputs", "streaming"}
    later_facts |= {"slo_not_held", "tokens_in_bursts", "requests_failed", "router_kl_not_measured"}
    later_facts |= {"quantized_each_pass"}
    later_labels = {"activations_kept", "activations_rounded", "computed_in_float32", "may_have_spilled", "pipelined"}
    later_labels |= {"engine_differs", "engine_not_separated", "zero_scales", "experts_not_calibrated", "streamed"}
    later_labels |= {"quantized_in_parts", "answers_short", "gaps_left_out", "remote", "dtype_changed"}
    later_labels |= {"requests_queue", "rounded_to_nearest"}
    assert {code for code, *_ in SCHEMA_1_LABELS} == set(LABELS) - {"implausible_baseline", "other"} - later_labels
    assert {code for code, *_ in SCHEMA_1_FACTS} == set(FACTS) - counted - later_facts


@given(TEXT)
def test_what_is_not_known_is_kept_as_it_is(text: str) -> None:
    sentence = f"¶ {text}"
    assert decode(Label, upgraded.label(sentence), "label") == Label("other", {"text": sentence})
    assert decode(Fact, upgraded.fact(sentence, text), "fact").value == text


@pytest.mark.parametrize(
    "sentence", ["calibrated on ,, tokens, which is little", "its publisher quantized 1.2.3% of the decoder"]
)
def test_a_sentence_without_a_number_in_its_place_is_kept_as_it_is(sentence: str) -> None:
    assert decode(Label, upgraded.label(sentence), "label") == Label("other", {"text": sentence})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reload difference", "logits by . of the largest, KL 1 nat, loss 1 before and 1 now"),
        ("layers", f"{'9' * 5000} × Linear"),
    ],
)
def test_a_fact_without_a_number_in_its_place_is_kept_as_it_is(name: str, value: str) -> None:
    assert decode(Fact, upgraded.fact(name, value), "fact") == Fact("noted", {"name": name, "value": value})


@pytest.mark.parametrize("sentence", ["suspect: the GPU was throttled", "suspect: the machine's own speed: who knows"])
def test_a_suspicion_in_other_words_is_one(sentence: str) -> None:
    found = decode(Label, upgraded.label(sentence), "label")
    assert (found.code, found.sentence) == ("suspect", sentence)


@pytest.mark.parametrize(
    "sentence", ["calibrated on the evaluation text", "calibrated on the evaluation text: 3% of it"]
)
def test_a_leak_in_other_words_is_one(sentence: str) -> None:
    found = decode(Label, upgraded.label(sentence), "label")
    assert (found.code, found.sentence) == ("leaked", sentence)


@pytest.mark.parametrize("form", [*LABELS.values(), *FACTS.values()], ids=[*LABELS, *FACTS])
def test_every_code_makes_its_sentence(form: Form) -> None:
    form.check(form.example)
    assert form.sentence(**form.example)
    assert form.meaning


@pytest.mark.parametrize("reason", IMPLAUSIBLE)
def test_every_reason_against_a_baseline_makes_its_sentence(reason: str) -> None:
    label = Label("implausible_baseline", {"reason": reason, "figure": 2.0, "limit": 1.0})
    assert label.sentence.startswith("implausible baseline: ")


def test_the_lists_are_closed() -> None:
    assert set(get_args(LabelCode)) == set(LABELS)
    assert set(get_args(FactCode)) == set(FACTS)
    with pytest.raises(ValueError, match="unknown code 'nonsense'"):
        Label("nonsense")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no sentence can be made"):
        Label("little_calibration")
    with pytest.raises(ValueError, match="no sentence can be made"):
        Fact("attention", {"implementation": "sdpa", "more": 1})


def test_a_label_survives_json() -> None:
    labels = (Label("left_alone", {"modules": ("a", "b")}), Label("leaked", {"shared": 0.5, "run_tokens": 16}))
    again = decode(tuple[Label, ...], json.loads(encode(labels)), "labels")
    assert again == labels
    assert codes((*again, *labels)) == ("left_alone", "leaked")


def test_an_outcome_of_schema_1_is_upgraded() -> None:
    raw = {
        "schema_version": 1,
        "outcome": {"status": "ok", "labels": ["unpacked once"], "facts": {"attention": "sdpa", "training_rows": 64}},
    }
    assert upgrade(raw, "it")["outcome"] == {
        "status": "ok",
        "labels": [{"code": "other", "arguments": {"text": "unpacked once"}}],
        "facts": [
            {"code": "attention", "arguments": {"implementation": "sdpa"}},
            {"code": "noted", "arguments": {"name": "training_rows", "value": 64}},
        ],
    }


def calls() -> Iterator[tuple[str, str, set[str]]]:
    """Each label and fact that the code makes with arguments by name: its place, its code, the arguments' names."""
    root = Path(harness.__file__).parent
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            names = [each.arg for each in node.keywords]
            if called in ("Label", "Fact"):
                second = node.args[1] if len(node.args) > 1 else ast.Dict([], [])
                names = [getattr(key, "value", None) for key in second.keys] if isinstance(second, ast.Dict) else [None]
            elif called not in ("label", "fact") or not names:  # a fact is looked up by its code alone
                continue
            if None not in names:
                yield f"{file.relative_to(root)}:{node.lineno}", str(node.args[0].value), set(map(str, names))


def test_every_label_and_fact_is_made_with_its_own_arguments() -> None:
    """mypy knows the codes; which arguments each has it cannot know, and some are made where no test comes."""
    forms: Mapping[str, Callable[..., str]] = {code: form.sentence for code, form in (LABELS | FACTS).items()}  # type: ignore[operator]
    seen = list(calls())
    assert len(seen) > 25
    for place, code, names in seen:
        assert code in forms, place
        signature = inspect.signature(forms[code])
        signature.bind(**dict.fromkeys(names)), place
