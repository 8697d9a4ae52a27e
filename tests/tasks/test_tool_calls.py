"""The task of tool calls: its tools and questions, its prompts, and how answers are read and scored."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.tasks.tool_calls.grading import ASPECTS, alike, grade, is_valid
from harness.tasks.tool_calls.parsing import Call, calls
from harness.tasks.tool_calls.prompts import parts, plain, templated
from harness.tasks.tool_calls.questions import ToolQuestion, call_text, questions, spoken
from harness.tasks.tool_calls.tools import BY_NAME, TOOLS

NUMBERS = (1, 2, 4, 8, 16, 32)


def names(question: ToolQuestion) -> set[str]:
    return {tool.name for tool in question.offered}


def test_there_are_enough_tools_and_each_schema_is_one() -> None:
    assert len(TOOLS) == len(BY_NAME) >= 40
    for tool in TOOLS:
        jsonschema.Draft202012Validator.check_schema(tool.parameters)
        assert set(tool.values) | set(tool.fixed) <= set(tool.properties)


def test_questions_are_the_same_for_every_number_of_tools() -> None:
    made = {number: questions(number) for number in NUMBERS}
    requests = [each.request for each in made[1]]
    assert len(set(requests)) == len(requests) >= 150
    for number, found in made.items():
        assert [each.request for each in found] == requests
        assert questions(number) == found
        for each in found:
            assert len(names(each)) == number
            assert each.tool.name in names(each)
    for few, more in pairwise(NUMBERS):
        assert all(names(a) <= names(b) for a, b in zip(made[few], made[more], strict=True))


def test_the_right_tool_is_at_no_place_more_often_than_at_others() -> None:
    places = [each.offered.index(each.tool) for each in questions(8)]
    assert all(8 <= places.count(place) <= 40 for place in range(8))  # 22 of 176 are expected at each


def test_each_right_call_is_valid_and_a_question_says_all_that_it_holds() -> None:
    for each in questions(1):
        jsonschema.validate(dict(each.arguments), each.tool.parameters)
        for name, value in each.arguments.items():
            assert name in each.tool.fixed or spoken(value) in each.request
        lacking = set(each.tool.properties) - set(each.arguments)
        assert all("default" in each.tool.properties[name] for name in lacking)


def test_the_right_call_has_full_marks_and_no_other_questions_call_does() -> None:
    found = questions(4)
    for each, other in pairwise(found):
        offered, right = [tool.name for tool in each.offered], Call(each.tool.name, dict(each.arguments))
        assert set(grade(call_text(right.name, right.arguments), offered, right).values()) == {1.0}
        assert grade(call_text(other.tool.name, other.arguments), offered, right)["exact_match"] == 0


WEATHER = Call("get_weather", {"city": "Oslo", "unit": "celsius"})
ARGUMENTS = '{"city": "Oslo", "unit": "celsius"}'
PLAIN = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}'
FORMATS = {
    "plain": f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}',
    "plain with words around": f'Sure:\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\nDone.',
    "a list": f'[{{"name": "get_weather", "arguments": {ARGUMENTS}}}]',
    "a fence": f'```json\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n```',
    "openai": f'{{"type": "function", "function": {{"name": "get_weather", "arguments": {json.dumps(ARGUMENTS)}}}}}',
    "hermes": f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>',
    "hermes with words around": f"I call:\n<tool_call>{PLAIN}</tool_call>",
    "qwen3-coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=unit>\n"
    "celsius\n</parameter>\n</function>\n</tool_call>",
    "llama 3": f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}',
    "llama 3 tag": f'<|python_tag|>{{"type": "function", "name": "get_weather", "parameters": {ARGUMENTS}}}<|eom_id|>',
    "llama python": '<|python_tag|>get_weather.call(city="Oslo", unit="celsius")',
    "llama pythonic": '[get_weather(city="Oslo", unit="celsius")]',
    "mistral": f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {ARGUMENTS}}}]</s>',
    "mistral with arguments": f"[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}</s>",
    "mistral with an id": f"[TOOL_CALLS]get_weather[CALL_ID]a1b2[ARGS]{ARGUMENTS}",
    "mistral without its tokens": f"get_weather{ARGUMENTS}",
    "harmony": "<|channel|>analysis<|message|>Weather, so {}.<|end|><|start|>assistant<|channel|>commentary "
    f"to=functions.get_weather <|constrain|>json<|message|>{ARGUMENTS}<|call|>",
    "harmony without its tokens": f"analysisWeather.assistantcommentary to=functions.get_weather json{ARGUMENTS}",
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_known_format_is_read(name: str) -> None:
    assert calls(FORMATS[name]) == (WEATHER,)
    assert set(grade(FORMATS[name], ["get_weather"], WEATHER).values()) == {1.0}


BROKEN = '{"name": "get_weather", "arguments": {"city": "Oslo", "unit": "celsius"'


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", (0, 0, 0, 0)),
        ("It is warm in Oslo.", (0, 0, 0, 0)),
        (BROKEN, (0, 0, 0, 0)),
        (f"<tool_call>{BROKEN}</tool_call>", (0, 0, 0, 0)),
        (FORMATS["plain"].replace('"', "'"), (0, 0, 0, 0)),
        ('{"city": "Oslo"}', (0, 0, 0, 0)),
        (FORMATS["plain"].replace('"Oslo"', "NaN"), (0, 0, 0, 0)),
        (call_text("get_forecast", {"city": "Oslo", "days": 3}), (1, 1, 0, 0)),
        (call_text("set_timer", {"minutes": 3, "label": "x"}), (1, 0, 0, 0)),  # not offered
        (call_text("get_weather", {"city": "Oslo"}), (1, 0, 1, 0)),
        (call_text("get_weather", {"city": "Oslo", "unit": "kelvin"}), (1, 0, 1, 0)),
        (call_text("get_weather", {"city": "Bergen", "unit": "celsius"}), (1, 1, 1, 0)),
        (call_text("get_weather", {"unit": "celsius", "city": " oslo "}), (1, 1, 1, 1)),
        (FORMATS["hermes"] * 2, (1, 1, 1, 0)),  # one call was asked for
    ],
)
def test_each_aspect_is_told_apart(answer: str, expected: tuple[int, ...]) -> None:
    found = grade(answer, ["get_forecast", "get_weather"], WEATHER)
    assert tuple(found[name] for name in ("valid_json", "valid_schema", "right_tool", "exact_match")) == expected
    assert tuple(found) == ASPECTS


def test_numbers_defaults_and_the_order_of_keys_do_not_count() -> None:
    right = Call("search_products", {"query": "desk lamp", "max_price": 25})
    assert alike(Call("search_products", {"max_price": 25.0, "query": "Desk lamp", "in_stock": True}), right)
    assert not alike(Call("search_products", {"max_price": 25.5, "query": "desk lamp"}), right)
    assert not alike(Call("search_products", {"max_price": 25, "query": "desk lamp", "in_stock": False}), right)


VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 200)
    | st.floats(-5, 200)
    | st.sampled_from(["celsius", "mon", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["base", "quote", "z"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@given(st.sampled_from(TOOLS), st.data())
def test_our_validation_is_that_of_json_schema(tool: Any, data: st.DataObject) -> None:
    """Right arguments with some of them replaced, left out or added."""
    (each,) = [each for each in questions(1) if each.tool is tool][:1]
    arguments = dict(each.arguments)
    for name in data.draw(st.sets(st.sampled_from([*tool.properties, "other"]), max_size=2)):
        arguments[name] = data.draw(VALUES)
    for name in data.draw(st.sets(st.sampled_from(list(tool.properties)), max_size=1)):
        arguments.pop(name, None)
    theirs = jsonschema.Draft202012Validator(tool.parameters).is_valid(arguments)
    assert is_valid(arguments, tool.parameters) == theirs


@given(st.text(max_size=60) | st.lists(st.sampled_from(list(FORMATS.values()))).map("".join), st.randoms())
def test_no_answer_breaks_the_reader(answer: str, draw: random.Random) -> None:
    cut = answer[: draw.randrange(len(answer) + 1)]
    for found in calls(cut):
        assert isinstance(found.arguments, dict)


LOOPS = ("[", '{"a": ', "to=a ", "to=json", "<function=a>", "a.", "get\n", "f()", "`" * 3)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_answer_that_loops_has_no_call(loop: str) -> None:
    for end in ("", "x", "(x=1)", "()"):
        assert calls(loop * 30_000 + end) == ()
        assert calls(loop * 900 + end) == ()


def test_a_number_of_any_length_is_a_wrong_argument() -> None:
    right = Call("search_products", {"query": "desk lamp", "max_price": 25})
    answer = call_text("search_products", {"query": "desk lamp", "max_price": 10**400})
    found = grade(answer, ["search_products"], right)
    assert (found["valid_json"], found["exact_match"]) == (1, 0)


def test_the_plain_format_can_be_read_back() -> None:
    question = questions(4)[7]
    tools = [tool.declared for tool in question.offered]
    assert parts(plain(tools, question.request)) == (tools, question.request)
    assert parts("Request: what is the weather?") is None


class Template:
    """A tokenizer whose template shows what it was given, with tools or not."""

    chat_template = "a template"

    def __init__(self, with_tools: bool) -> None:
        self.with_tools = with_tools

    def apply_chat_template(self, messages: Any, tools: Any = None, **settings: Any) -> str:
        assert settings == {"tokenize": False, "add_generation_prompt": True}
        return f"<tools>{json.dumps(tools) if self.with_tools else ''}</tools><user>{messages[0]['content']}</user>"


def test_tools_go_through_the_models_own_template_where_it_takes_them() -> None:
    question = questions(2)[0]
    tools = [tool.declared for tool in question.offered]
    prompt = plain(tools, question.request)
    assert templated(Template(True), prompt) == f"<tools>{json.dumps(tools)}</tools><user>{question.request}</user>"
    assert templated(Template(False), prompt) == f"<tools></tools><user>{prompt}</user>"
    assert templated(SimpleNamespace(chat_template=None), prompt) == prompt
    assert templated(Template(True), "Another task's question") is None
