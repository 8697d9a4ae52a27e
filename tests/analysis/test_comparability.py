"""The key of a figure: equal exactly where ``compare`` finds two figures comparable, and made of nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_specs import MODEL, changed, run_spec

from harness.analysis.comparability import Comparability, conditions_of_measurement
from harness.analysis.history.values import comparability, values_of
from harness.analysis.regression.cases import Case
from harness.analysis.regression.matching import match
from harness.analysis.regression.paired import unlike
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.run import RunSpec
from harness.core.workload import ThroughputWorkload
from harness.plugins import gates

TEXT = {"protocol": "gptq", "context": 64, "text_sha256": "1" * 64, "tokens_sha256": "2" * 64, "tokens_scored": 126}
GRID = ThroughputWorkload((1,), (8,), 4, 1, 3)
NAMES = st.sampled_from(["protocol", "context", "text_sha256", "tokens_sha256", "stride"])
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["", "1", "true", "none", "gptq"]))
PROTOCOLS = st.dictionaries(NAMES, VALUES, max_size=4)
ITEMS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True).map(tuple)


def nll(protocol: dict[str, Any] = TEXT, version: int = 1, items: tuple[str, ...] = ("a", "b")) -> Measurement:
    values = tuple(float(number) for number, _ in enumerate(items, 1))
    return Measurement("nll", version, "nat/token", "lower", "paired", values, protocol, item_ids=items)


def case(measured: Measurement, spec: RunSpec | None = None) -> Case:
    spec = spec or run_spec("quality")
    return Case((RunRecord(spec, Outcome("ok", measurements=(measured,)), "s", 1, "2026-01-01T00:00:00+00:00", 1.0),))


def key(one: Case, name: str = "perplexity") -> Comparability:
    figure = gates()[name]
    (value,) = values_of(one, [figure])[name]
    return comparability(one, figure, value)


def timed(hardware: str = "A", batch: int = 1) -> Case:
    point = {"batch_size": batch, "prompt_tokens": 8, "new_tokens": 4, "decode_mode": "eager"}
    found = Measurement("decode_step_s", 1, "s", "lower", "samples", (0.1, 0.1), point | {"warmup": 1, "iterations": 3})
    return case(found, changed(run_spec("performance", throughput=GRID), hardware=hardware))


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from([MODEL, replace(MODEL, content="9" * 64), replace(MODEL, path="/other", id="other")]),
        "seed": st.integers(0, 1),
        "attention": st.sampled_from([None, "eager"]),
        "hardware": st.sampled_from(["A", "B"]),
        "session": st.just("ignored"),
    },
)


def spec_with(changes: dict[str, Any]) -> RunSpec:
    kept = {name: value for name, value in changes.items() if name != "session"}
    return changed(run_spec("quality", model=kept.pop("model", MODEL)), **kept)


@given(PROTOCOLS, PROTOCOLS, st.integers(1, 2), st.integers(1, 2), ITEMS, ITEMS, CHANGES, CHANGES)
def test_keys_are_equal_exactly_where_a_comparison_finds_nothing_incomparable(
    protocol: dict[str, Any],
    other: dict[str, Any],
    version: int,
    later: int,
    items: tuple[str, ...],
    others: tuple[str, ...],
    changes: dict[str, Any],
    changed_too: dict[str, Any],
) -> None:
    measured = nll(protocol, version, items), nll(other, later, others)
    one, two = case(measured[0], spec_with(changes)), case(measured[1], spec_with(changed_too))
    matches = match({one.spec.case_id: one}, {two.spec.case_id: two})
    (found,) = matches.both
    comparable = not (found.bars or found.tracked or unlike(*measured))
    assert (key(one).key == key(two).key) == comparable
    assert (not list(key(one).differing(key(two)))) == comparable


@given(PROTOCOLS, PROTOCOLS, PROTOCOLS)
def test_to_be_comparable_is_an_equivalence(one: dict[str, Any], two: dict[str, Any], three: dict[str, Any]) -> None:
    keys = [Comparability(conditions_of_measurement(nll(each))) for each in (one, two, three)]
    backwards = Comparability(conditions_of_measurement(nll(dict(reversed(one.items())))))
    assert keys[0].key == backwards.key
    for first in keys:
        for second in keys:
            assert (first.key == second.key) == (second.key == first.key) == (not list(first.differing(second)))


def test_a_value_of_another_type_is_another_value() -> None:
    values: list[Any] = [1, True, "1.0", 1.5, "yes", False]
    keys = {Comparability(conditions_of_measurement(nll({"stride": value}))).key for value in values}
    assert len(keys) == len(values)


def test_content_counts_and_names_and_paths_do_not() -> None:
    renamed = replace(MODEL, label="another name", id="elsewhere", path="/elsewhere")
    assert key(case(nll())).key == key(case(nll(), run_spec("quality", recipe="mine", model=renamed))).key
    (found,) = key(case(nll())).differing(key(case(nll(), run_spec("quality", model=replace(MODEL, content="7" * 64)))))
    assert found[0] == "asked model"


@pytest.mark.parametrize("name", sorted(TEXT))
def test_protocol_text_and_tokens_are_in_it(name: str) -> None:
    (found,) = key(case(nll())).differing(key(case(nll({**TEXT, name: "other"}))))
    assert found[0] == name
    assert found[2] == "other"


def test_the_class_of_the_machine_counts_for_speed_alone() -> None:
    quality = [key(case(nll(), changed(run_spec("quality"), hardware=each))).key for each in "AB"]
    assert quality[0] == quality[1]
    assert [name for name, *_ in key(timed("A"), "decode").differing(key(timed("B"), "decode"))] == ["hardware"]
