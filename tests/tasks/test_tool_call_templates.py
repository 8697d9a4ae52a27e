"""Tool calls through chat templates, rendered by transformers: what a model that takes tools is really asked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.tasks.tool_calls.prompts import HEAD, plain, templated
from harness.tasks.tool_calls.questions import ToolQuestion, questions

pytestmark = pytest.mark.heavy

FOLDER = Path(__file__).parents[1] / "data" / "chat_templates"
TAKING_TOOLS = ("tools_in_system", "tools_in_user", "tools_before_last")
NUMBERS = (1, 8)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


def prompt_of(question: ToolQuestion) -> str:
    return plain([tool.declared for tool in question.offered], question.request)


def rendered(tokenizer: Any, template: str, question: ToolQuestion) -> str:
    tokenizer.chat_template = (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
    found = templated(tokenizer, prompt_of(question))
    assert found is not None
    return found


def declared(chat: str) -> list[dict[str, Any]]:
    """The tools that a chat declares, read from its JSON."""
    found: list[dict[str, Any]] = []
    for start in re.finditer(r'\{\s*"type": "function"', chat):
        tool, _ = json.JSONDecoder().raw_decode(chat, start.start())
        found.append(tool)
    return found


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("template", TAKING_TOOLS)
def test_each_tool_with_its_schema_and_the_request_reach_the_model(tokenizer: Any, template: str, number: int) -> None:
    for question in questions(number):
        chat = rendered(tokenizer, template, question)
        assert declared(chat) == [tool.declared for tool in question.offered]
        assert chat.count(question.request) == 1
        assert HEAD not in chat  # the template's own words stand for ours
    assert chat.endswith(("<|im_start|>assistant\n", "<|end_header_id|>\n\n", "[/INST]"))


@pytest.mark.parametrize("number", NUMBERS)
def test_a_template_that_leaves_tools_out_gets_them_in_the_users_message(tokenizer: Any, number: int) -> None:
    for question in questions(number):
        chat = rendered(tokenizer, "no_tools", question)
        assert chat == f"<|im_start|>user\n{prompt_of(question)}<|im_end|>\n<|im_start|>assistant\n"
        assert all(json.dumps(tool.name) in chat for tool in question.offered)
