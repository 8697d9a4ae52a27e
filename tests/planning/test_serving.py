"""Planning of servers under load, and what a recipe may not ask of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clock_server import MODEL, Answer, clock_server

from harness import plugins
from harness.api.plan import plan
from harness.api.run import RunSettings, _missing_stacks, run_part
from harness.api.workplace import Workplace
from harness.core.effort import JobEffort
from harness.core.engine import PlannedLoad
from harness.core.site import Machine
from harness.core.workload import Slo
from harness.errors import RecipeError, UsageError
from harness.planning.plan import PlannedRun
from harness.recipe import Recipe, load_recipe
from harness.stacks import Stack, Stacks

pytestmark = pytest.mark.heavy

HERE = Machine("cpu", "a test machine")
USUAL: dict[str, Any] = {"concurrency": [8, 1], "prompts": {"tokens": 32}, "new_tokens": 8}


def planned(tiny: Path, serving: dict[str, Any], **others: Any) -> list[PlannedRun]:
    recipe = {"name": "s", "models": [str(tiny)], "methods": ["none"], "engines": ["llamacpp"], **others}
    data = {**recipe, "measure": {"serving": serving}, "repetitions": 3}
    return list(plan(Recipe.model_validate_json(json.dumps(data)), HERE))


def test_each_repetition_is_a_run_whose_memory_is_not_measured(tiny: Path) -> None:
    runs = [each.spec for each in planned(tiny, USUAL) if each.spec.kind == "serve"]
    assert [each.repetition for each in runs] == [0, 1, 2]
    assert len({each.case_id for each in runs}) == 1
    assert len({each.run_id for each in runs}) == 3
    assert not any(each.job.conditions.memory for each in runs)
    assert runs[0].serving is not None
    assert (runs[0].serving.levels, runs[0].serving.requests) == ((1.0, 8.0), 64)
    assert runs[0].title == "serve none · llamacpp #1"


def test_a_load_is_a_part_of_the_question(tiny: Path) -> None:
    asked = [
        USUAL,
        {**USUAL, "new_tokens": 9},
        {**USUAL, "slo": {"ttft": "500ms"}},
        {**USUAL, "slo": {"ttft": 0.5, "attainment": 0.99}},
        {**USUAL, "arrival": "constant", "concurrency": None, "rates": 1.5},
    ]
    assert len({planned(tiny, each)[-1].spec.case_id for each in asked}) == len(asked)
    (slo,) = {each.spec.serving.slo for each in planned(tiny, asked[2]) if each.spec.serving}
    assert slo == Slo(ttft_s=0.5)


def test_an_engine_without_a_server_is_unsupported(tiny: Path) -> None:
    (reason,) = {each.unsupported for each in planned(tiny, USUAL, engines=["transformers"])}
    assert reason is not None
    assert reason.startswith("a serve run needs the capability serves; transformers has only")


def on_a_server(tiny: Path, stacks: Stacks, serving: dict[str, Any], **measured: Any) -> list[PlannedRun]:
    """The loads on a server of the user's, which needs no stack of its own."""
    with clock_server(lambda number, active: Answer()) as server:
        served = {"served": {"url": server.url, "model": MODEL}}
        data = {"name": "s", "models": [str(tiny)], "methods": [served], "baseline": served, "engines": ["endpoint"]}
        recipe = Recipe.model_validate_json(json.dumps({**data, "measure": {"serving": serving, **measured}}))
        return [each for each in plan(recipe, HERE, stacks) if each.spec.kind == "serve"]


def test_a_load_needs_the_stack_that_sends_it_whatever_engine_serves(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Stacks(tmp_path)
    runs = on_a_server(tiny, missing, USUAL)
    why = missing.find("vllm").find_obstacle()
    assert why is not None
    assert {each.unsupported for each in runs} == {
        f"a serve run uses a program of another stack than its engine's: {why}"
    }
    assert _missing_stacks(runs, missing) == {"vllm"}


def test_each_missing_stack_is_created_once_also_if_that_fails(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    said: list[str] = []

    def create(stack: Stack, report: object) -> None:
        assert stack.name not in tried
        tried.append(stack.name)
        if stack.name == "llamacpp":
            raise UsageError("there is no compiler")

    monkeypatch.setattr("harness.stacks.build.create", create)
    data = {"name": "s", "models": [str(tiny)], "methods": ["none"], "engines": ["llamacpp", "vllm"], "device": "cpu"}
    recipe = Recipe.model_validate_json(json.dumps({**data, "measure": {"serving": USUAL}}))
    settings = RunSettings(Workplace(tmp_path / "results", tmp_path / "cache"), create_stacks=said.append)
    assert run_part(recipe, settings, part=lambda planned: ()) == ()
    assert tried == ["llamacpp", "vllm"]
    assert said == ["there is no compiler"]


def test_requests_beyond_the_context_are_unsupported(tiny: Path, tmp_path: Path) -> None:
    runs = on_a_server(
        tiny, Stacks(tmp_path, {"vllm": Path(sys.executable)}), {**USUAL, "prompts": {"tokens": 100_000}}
    )
    assert runs
    assert all("prompt and new tokens, 100008, exceed" in (each.unsupported or "") for each in runs)


def test_the_energy_of_a_server_of_the_users_is_not_counted_here(tiny: Path, tmp_path: Path) -> None:
    stacks = Stacks(tmp_path, {"vllm": Path(sys.executable)})
    assert not any(each.unsupported for each in on_a_server(tiny, stacks, USUAL))
    runs = on_a_server(tiny, stacks, USUAL, energy={})
    assert {(each.unsupported, each.note) for each in runs} == {
        (
            None,
            "without its energy: the counters of this machine do not count what the server takes that it asks",
        )
    }


def test_an_engine_is_told_of_requests_that_its_server_must_hold(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[PlannedLoad] = []
    engines = plugins.engine
    watched = replace(engines("endpoint"), refuses=lambda load, params: planned.append(load))
    monkeypatch.setattr("harness.plugins.engine", lambda name: watched if name == "endpoint" else engines(name))
    on_a_server(tiny, Stacks(tmp_path, {"vllm": Path(sys.executable)}), USUAL)
    assert {(each.tokens, each.serves) for each in planned} == {(0, False), (32 + 8, True)}


def test_a_forecast_counts_what_warms_up_and_levels_that_bisect(tiny: Path) -> None:
    """Two rates of 20 requests and 2 that warm up; a level that bisects may take as long as the slowest."""

    def effort(**others: Any) -> JobEffort:
        asked = {**USUAL, "arrival": "constant", "concurrency": None, "rates": [0.5, 2], "slo": {"ttft": "1s"}}
        (found,) = {each.spec.job.effort for each in planned(tiny, {**asked, **others}) if each.spec.kind == "serve"}
        return found

    once = effort(requests=20, warmup=2)
    assert (once.tokens, once.apart_s) == (2 * 22 * 40, 22 / 0.5 + 22 / 2)
    bisected = effort(requests=20, warmup=2, bisect=3)
    assert (bisected.tokens, bisected.apart_s) == (5 * 22 * 40, 4 * 22 / 0.5 + 22 / 2)
    lasting = effort(duration="60s")
    assert lasting.apart_s == 120


@pytest.mark.parametrize(
    ("serving", "expected"),
    [
        ("{}", "measure.serving: expected 'concurrency' beside arrival concurrent"),
        ("{arrival: poisson, concurrency: [1]}", "expected 'rates' beside arrival poisson"),
        ("{concurrency: [1], rates: [1]}", "arrival concurrent has concurrency, not rates"),
        ("{concurrency: [1], duration: 5s}", "a duration needs rates"),
        ("{arrival: constant, rates: [1], duration: 5s, requests: 9}", "expected requests or duration, not both"),
        ("{arrival: constant, rates: [0.5], duration: 5s}", "in which 6 to 100000 requests come at every rate"),
        ("{concurrency: [4, 24], requests: 16}", "more requests wait at the same time than a level has"),
        ("{concurrency: [1], bisect: 1}", "bisect needs an slo"),
        ("{concurrency: [1], slo: {}}", "expected a limit: ttft, tpot, itl or e2e"),
        ("{concurrency: [1], slo: {ttft: fast}}", "measure.serving.slo.ttft: expected a duration such as 500ms or 2s"),
        ("{concurrency: [1], slo: {ttft: 1s, attainment: 120%}}", "measure.serving.slo.attainment"),
        ("{concurrency: [1], slo: {tfft: 1s}}", "unknown key; did you mean 'ttft'?"),
        ("{concurrency: [1], prompts: {text: demmo}}", "unknown text 'demmo'; did you mean 'demo'?"),
        ("{concurrency: [0]}", "measure.serving.concurrency"),
        ("{concurrency: [4, 4]}", "measure.serving.concurrency: expected no duplicates"),
        ("{arrival: constant, rates: [1, 1.0]}", "measure.serving.rates: expected no duplicates"),
        (
            "{arrival: constant, rates: [2, 2.0000001]}",
            "measure.serving.rates: expected rates that differ in their first six digits; two are shown as 2",
        ),
        ("{concurrency: [1]}\n  serving: {concurrency: [1]}", "duplicate key 'serving'"),
        ("{concurrency: [1], arrival: bursts}", "measure.serving.arrival"),
    ],
)
def test_what_a_recipe_may_not_ask(tiny: Path, tmp_path: Path, serving: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        f"name: bad\nmodels: [{tiny}]\nmethods: [none]\nengines: [llamacpp]\nmeasure:\n  serving: {serving}\n"
    )
    with pytest.raises(RecipeError) as caught:
        plan(load_recipe(path), HERE)
    assert expected in str(caught.value)
    assert f"bad.yaml:{7 if 'duplicate key' in expected else 6}" in str(caught.value)
