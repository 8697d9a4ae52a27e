"""What the definitions of this folder call: lm-eval asks for the questions and for the scores of answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.tasks.tool_calls.grading import grade
from harness.tasks.tool_calls.parsing import Call
from harness.tasks.tool_calls.prompts import plain
from harness.tasks.tool_calls.questions import call_text, questions


def dataset(tools: int, **_: Any) -> Mapping[str, Any]:
    """The questions with that many tools, as lm-eval takes them."""
    from datasets import Dataset

    rows = [
        {
            "prompt": plain([tool.declared for tool in each.offered], each.request),
            "call": call_text(each.tool.name, each.arguments),
            "offered": [tool.name for tool in each.offered],
            "tool": each.tool.name,
        }
        for each in questions(tools)
    ]
    return {"test": Dataset.from_list(rows)}


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The aspects of one answer."""
    right = json.loads(doc["call"])
    return grade(results[0], doc["offered"], Call(right["name"], right["arguments"]))
