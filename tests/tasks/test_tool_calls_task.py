"""The task of tool calls through lm-eval and the report: a variant whose JSON breaks from 8 tools on is found."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_specs import run_spec

from harness.analysis.tradeoff import tradeoff
from harness.core.model import MethodRef
from harness.core.record import Outcome, RunRecord
from harness.core.workload import TaskWorkload
from harness.errors import RecipeError
from harness.figures.table import Table
from harness.figures.tool_calls import NOWHERE, TOOL_CALLS_BREAK, breaks, by_tools
from harness.planning.workloads import tasks
from harness.recipe import load_recipe
from harness.report.plots.tool_calls import tool_calls
from harness.tasks.catalog import catalog
from harness.tasks.evaluate import evaluate
from harness.tasks.tool_calls.prompts import parts
from harness.tasks.tool_calls.questions import call_text, questions

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'qharness[eval]'")

from lm_eval.api.model import TemplateLM

pytestmark = pytest.mark.heavy

NAMES = [f"tool-calls-{tools:02}" for tools in (1, 2, 4, 8, 16, 32)]
NONE = MethodRef("none", 1, {}, "none", "none")
RIGHT = {each.request: (each.tool.name, each.arguments) for each in questions(1)}
Answer = Callable[[int, str, dict[str, Any]], str]


class Scripted(TemplateLM):
    """A model that knows the right call and answers as it is told: by the number of tools, from the call."""

    tokenizer = None
    tokenizer_name = "scripted"
    eot_token_id = 0

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        (message,) = chat_history
        return message["content"]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        answers = []
        for each in requests:
            tools, request = parts(each.args[0]) or ([], "")
            answers.append(self.answer(len(tools), *RIGHT[request]))
        return answers

    def _loglikelihood_tokens(self, *_: Any, **__: Any) -> Any:
        raise AssertionError

    loglikelihood_rolling = tok_encode = _loglikelihood_tokens


def right(tools: int, name: str, arguments: dict[str, Any]) -> str:
    return call_text(name, arguments)


def mostly_right(draw: random.Random) -> Answer:
    """Wrong in one answer of twenty, in one argument or in the tool."""

    def answer(tools: int, name: str, arguments: dict[str, Any]) -> str:
        if draw.random() > 0.05:
            return call_text(name, arguments)
        return call_text(name, {**arguments, next(iter(arguments)): "something else"})

    return answer


def breaks_json_from(first: int, draw: random.Random) -> Answer:
    """As ``mostly_right``, but with so many tools the closing braces are missing in a third of the answers."""
    usual = mostly_right(draw)

    def answer(tools: int, name: str, arguments: dict[str, Any]) -> str:
        text = usual(tools, name, arguments)
        return text[:-2] if tools >= first and draw.random() < 1 / 3 else text

    return answer


def workload(name: str, limit: int | None = None) -> TaskWorkload:
    return TaskWorkload(name, str(catalog().paths[name]), chat_template=True, cluster="tool", limit=limit)


def records(label: str, answer: Answer) -> list[RunRecord]:
    method = NONE if label == "none" else MethodRef("rtn", 1, {"as": label}, label, "on_load")
    return [
        RunRecord(
            run_spec("task", "tools", method=method, task=workload(name)),
            Outcome("ok", measurements=evaluate(Scripted(answer), workload(name)).scores),
            "s",
            1,
            f"2031-01-01T00:00:{number:02}+00:00",
            1.0,
        )
        for number, name in enumerate(NAMES)
    ]


@pytest.fixture(scope="module")
def table() -> Table:
    (made,) = tradeoff(
        [
            *records("none", mostly_right(random.Random(0))),
            *records("careful", mostly_right(random.Random(1))),
            *records("broken", breaks_json_from(8, random.Random(2))),
        ]
    )
    return made


def test_a_tag_is_six_tasks_with_four_scores_each() -> None:
    assert catalog().members("tool-calls") == tuple(NAMES)
    found = {str(each.protocol["score"]): each for each in evaluate(Scripted(right), workload(NAMES[3])).scores}
    assert set(found) == {"valid_json", "valid_schema", "right_tool", "exact_match"}
    for each in found.values():
        assert each.evidence == "paired"
        assert set(each.values) == {1.0}
        assert len(each.values) == len(RIGHT)
        assert len(set(each.cluster_ids)) == len({name for name, _ in RIGHT.values()})


def test_the_variant_whose_json_breaks_from_8_tools_on_is_found_by_name(table: Table) -> None:
    found = {row.label: breaks(row) for row in table.rows}
    assert found == {"none": None, "careful": NOWHERE, "broken": "valid JSON from 8 tools on"}
    assert {
        row.label: TOOL_CALLS_BREAK.of(row, place) for row in table.rows for place in TOOL_CALLS_BREAK.taken_at(table)
    } == found
    (broken,) = [row for row in table.rows if row.label == "broken"]
    changes = {tools: score.change.value for tools, score in by_tools(broken, "valid_json").items()}
    assert all(changes[tools] == 0 for tools in (1, 2, 4))
    assert all(-0.45 < changes[tools] < -0.2 for tools in (8, 16, 32))
    assert all(score.headline for score in by_tools(broken, "exact_match").values())


def test_the_plots_show_each_variant_by_the_number_of_tools(table: Table) -> None:
    json_plot, right_plot = tool_calls(table)
    assert json_plot.head == (
        "Variant",
        "1 tool, %",
        "2 tools, %",
        "4 tools, %",
        "8 tools, %",
        "16 tools, %",
        "32 tools, %",
    )
    drawn = {trace["name"]: trace for trace in json.loads(json_plot.json)["data"]}
    assert drawn["broken"]["x"] == ["1", "2", "4", "8", "16", "32"]
    assert drawn["broken"]["y"][:3] == [100, 100, 100]
    assert max(drawn["broken"]["y"][3:]) < 80
    assert min(drawn["careful"]["y"]) == 100
    assert right_plot.name == "tool-calls-exact-match"


def test_other_tasks_have_no_such_figure_and_plot() -> None:
    outcome = Outcome("ok", measurements=evaluate(Scripted(right), workload(NAMES[0], limit=4)).scores)
    one = RunRecord(
        run_spec("task", "tools", task=workload(NAMES[0])), outcome, "s", 1, "2031-01-01T00:00:00+00:00", 1.0
    )
    (made,) = tradeoff([one])
    assert tool_calls(made) == ()
    assert TOOL_CALLS_BREAK.taken_at(made) == ()


RECIPE = "name: t\nmodels: [{{id: {model}}}]\nmethods: [none]\nmeasure:\n  tasks: [{{name: tool-calls{more}}}]\n"


def test_a_recipe_asks_by_the_chat_template_and_clusters_by_tool(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.format(model=tiny, more=", limit: 5"))
    found = tasks(load_recipe(path))
    assert [each.name for each in found] == NAMES
    assert {(each.chat_template, each.cluster, each.limit, each.own) for each in found} == {(True, "tool", 5, None)}


@pytest.mark.parametrize("more", [", fewshot: 2", ", system: Be brief.", ", sampler: first_n"])
def test_what_has_no_effect_on_it_is_refused(tiny: Path, tmp_path: Path, more: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.format(model=tiny, more=more))
    with pytest.raises(RecipeError, match=r"r.yaml:5: .*has no effect on tool-calls"):
        tasks(load_recipe(path))
