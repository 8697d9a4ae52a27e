"""The questions of the task: made from templates by a seed, with the tools that are offered beside the right one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.tasks.tool_calls.tools import TOOLS, Tool

EACH = 4
"""Questions for each tool."""


@dataclass(frozen=True)
class ToolQuestion:
    """A request, the one right call, and the tools that are offered, in their order."""

    request: str
    tool: Tool
    arguments: Mapping[str, Any]
    offered: tuple[Tool, ...]


def questions(tools: int) -> list[ToolQuestion]:
    """All questions, each with that many tools in the prompt. The requests are the same for any number of tools.

    Those offered with more tools include those offered with fewer, so that only their number differs.
    """
    made = []
    for number, (request, tool, arguments) in enumerate(_requests()):
        draw = random.Random(f"tools {number}")
        others = [each for each in TOOLS if each is not tool]
        draw.shuffle(others)
        offered = [tool, *others[: tools - 1]]
        random.Random(f"order {number} {tools}").shuffle(offered)
        made.append(ToolQuestion(request, tool, arguments, tuple(offered)))
    return made


def _requests() -> Iterator[tuple[str, Tool, dict[str, Any]]]:
    """The first question of every tool, then the second ones, and so on, so that a few have many tools."""
    drawn: dict[str, random.Random] = {tool.name: random.Random(tool.name) for tool in TOOLS}
    asked: set[str] = set()
    for turn in range(EACH):
        for tool in TOOLS:
            while True:
                chosen = {name: drawn[tool.name].choice(list(values)) for name, values in tool.values.items()}
                template = tool.asks[turn % len(tool.asks)]
                request = template.format(**{name: spoken(value) for name, value in chosen.items()})
                if request not in asked:
                    break
            asked.add(request)
            yield request, tool, {**chosen, **tool.fixed}


def spoken(value: Any) -> str:
    """A value as a person would say it: ``one, two and three``; the members of an object by name."""
    if isinstance(value, list):
        return " and ".join([", ".join(value[:-1]), value[-1]]) if len(value) > 1 else str(value[0])
    if isinstance(value, dict):
        return " and ".join(f"{name} {each}" for name, each in value.items())
    return str(value)


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as plain JSON."""
    return json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
