"""A recipe that asks for more values than a record may have is refused before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from run_specs import UNDER_LOAD
from served_records import answers, measurements

from harness.core.workload import ServingWorkload
from harness.errors import ExitCode, RecipeError
from harness.host.machine import installed_version
from harness.metrics.serving import values_per_request
from harness.planning.plan import PlannedRun
from harness.storage.evidence import MAX_ROWS
from harness.tasks.answers import Question, WrittenAnswer, evidence, values_per_question
from harness.tasks.aspects import ASPECTS, FORMAT, THINKING

Make = Callable[..., tuple[PlannedRun, ...]]
TEXT: dict[str, Any] = {"text": "demo", "context": 64, "windows": 30}
ON_A_HUB = {"hub": "who/text", "split": "test", "revision": "a" * 40}
LOAD: dict[str, Any] = {"concurrency": [1, 8], "requests": 100, "new_tokens": 64}
GRID: dict[str, Any] = {"batch_sizes": [1, 2], "prompt_tokens": 16, "new_tokens": 99, "iterations": 100}
SAMPLED: dict[str, Any] = {"name": "gsm8k", "samples": 8, "temperature": 0.6, "limit": 200}
needs_lm_eval = pytest.mark.skipif(
    installed_version("lm-eval") is None, reason="needs lm-eval: pip install 'qharness[eval]'"
)
TOO_MANY = "more than 10,000, the most that a record may have: "


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (
            {"perplexity": TEXT, "divergence": {}},
            f"measure.perplexity.windows: 11,340 values are {TOO_MANY}6 values of divergence for each of 63 tokens "
            "in 30 windows; lower it, or leave out 'divergence'",
        ),
        (
            {"serving": LOAD},
            f"measure.serving: 13,800 values are {TOO_MANY}69 values for each of 200 requests at 2 levels, 63 of them "
            "times between tokens; lower 'requests' or 'duration', 'new_tokens' or the number of levels",
        ),
        (
            {"throughput": GRID},
            f"measure.throughput: 20,000 values are {TOO_MANY}10,000 values at each of 2 points of the grid",
        ),
    ],
)
def test_more_values_than_a_record_may_have_are_refused_with_what_to_lower(
    make: Make, monkeypatch: pytest.MonkeyPatch, measure: dict[str, Any], expected: str
) -> None:
    monkeypatch.setattr("harness.storage.evidence.MAX_ROWS", 10_000)
    with pytest.raises(RecipeError) as caught:
        make(measure=measure)
    assert expected in str(caught.value)
    assert re.search(r"recipe\.yaml:\d+: ", str(caught.value))
    assert caught.value.exit_code == ExitCode.USAGE == 2


@pytest.mark.parametrize(
    "measure",
    [
        {"perplexity": TEXT},  # a value for each window
        {"perplexity": {**TEXT, "windows": 26}, "divergence": {}},
        {"perplexity": {**TEXT, "protocol": "llama.cpp"}, "divergence": {}},  # half of each window is scored
        {"perplexity": {**TEXT, "windows": 10**6}, "divergence": {}},  # the text has not so many tokens: it is whole
        {"perplexity": {**TEXT, "windows": 120}, "divergence": {}},  # 57,345 bytes may be fewer tokens than 120 × 63
        {"perplexity": {**TEXT, "text": ON_A_HUB}, "divergence": {}},
        {"perplexity": {"text": "demo", "context": 64}, "divergence": {}},  # its tokens are counted when it is cut
        pytest.param({"tasks": [SAMPLED]}, marks=needs_lm_eval),  # of whose questions there may be fewer
        {"serving": {**LOAD, "requests": 70}},
        {"serving": {**LOAD, "length": "natural"}},  # the run leaves gaps out
        {"throughput": {**GRID, "iterations": 50}},
    ],
)
def test_what_fits_or_is_not_known_yet_is_planned(
    make: Make, monkeypatch: pytest.MonkeyPatch, measure: dict[str, Any]
) -> None:
    monkeypatch.setattr("harness.storage.evidence.MAX_ROWS", 10_000)
    assert make(measure=measure)


def test_the_limit_itself_is_one_that_a_recipe_can_reach(make: Make) -> None:
    requests = MAX_ROWS // 69 // 2
    assert make(measure={"serving": {**LOAD, "requests": requests}})
    with pytest.raises(RecipeError, match=f"are more than {MAX_ROWS:,}"):
        make(measure={"serving": {**LOAD, "requests": requests + 1}})


@pytest.mark.parametrize(
    "load",
    [
        UNDER_LOAD,
        replace(UNDER_LOAD, slo=None),
        replace(UNDER_LOAD, new_tokens=1),
    ],
)
def test_the_values_of_a_request_are_those_that_the_metric_makes(load: ServingWorkload) -> None:
    made = measurements({8.0: answers(8.0, 0, lambda level, number, repetition: (0.2, 0.03), load)}, load)
    assert values_per_request(load) * 40 == sum(len(m.values) for m in made if len(m.values) > 1)
    assert values_per_request(replace(load, natural=True)) == values_per_request(load) - (load.new_tokens - 1)
    assert values_per_request(replace(load, arrival="poisson")) == values_per_request(load) + 1  # when it was planned


def test_the_values_of_a_question_are_those_that_its_answers_have() -> None:
    aspects = {each.name: 0.0 for each in ASPECTS if each not in (THINKING, FORMAT)}
    names = ("q:0", "q:1", "q:2")
    written = [WrittenAnswer(f"{q}#{n}", q, q, "It is 18.", 1.0, aspects) for q in names for n in range(2)]
    asked = [Question(q, "How many?", "18") for q in names]
    made = sum(len(m.values) for m in evidence(written, asked, {}))
    assert 3 * values_per_question(2) == made + len(written)  # and the scores
    assert values_per_question(1) == 1
