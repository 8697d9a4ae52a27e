"""Tool calls by the number of tools in the prompt, and from how many on a variant's are worse than the baseline's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harness.figures.control import where_any
from harness.figures.figure import Figure, Whole
from harness.figures.table import AnswersKey, TaskKey, TaskScore, VariantRow
from harness.figures.tasks import GROUP

ASPECTS: Mapping[str, str] = {
    "valid_json": "valid JSON",
    "valid_schema": "valid arguments",
    "right_tool": "right tool",
    "exact_match": "right call",
}
"""The scores of an answer in words, the one that asks for least first."""
NOWHERE = "nowhere"
_TASK = re.compile(r"tool-calls-(\d+)")


def offered(key: TaskKey | AnswersKey) -> int | None:
    """How many tools the questions of a task offer; None if it is not one of tool calls."""
    found = _TASK.fullmatch(key.task)
    return int(found[1]) if found else None


def by_tools(row: VariantRow, aspect: str) -> dict[int, TaskScore]:
    """A score of a variant's calls by the number of tools, rising."""
    found = {tools: each for each in row.tasks if (tools := offered(each.key)) and each.key.score == aspect}
    return dict(sorted(found.items()))


def breaks(row: VariantRow) -> str | None:
    """The first aspect in which a variant is worse than the baseline with many tools, and from how many on.

    Worse with the most tools, and with each fewer number down to the one that is named, by the verdicts of the table.
    None if nothing was compared.
    """
    scores = {aspect: by_tools(row, aspect) for aspect in ASPECTS}
    if not any(each.comparison for found in scores.values() for each in found.values()):
        return None
    for aspect, words in ASPECTS.items():
        first = None
        for tools, score in reversed(scores[aspect].items()):
            if score.comparison is None or score.comparison.verdict != "worse":
                break
            first = tools
        if first is not None:
            return f"{words} from {first} tools on" if first > 1 else f"{words}, even with one tool"
    return NOWHERE


TOOL_CALLS_BREAK: Figure[Whole] = Figure(
    "tool_calls_break",
    GROUP,
    "Tool calls worse",
    "From how many tools in the prompt on the calls are worse than the baseline's, and in what: valid JSON, valid "
    "arguments, the right tool, the right call. By the verdicts on these scores, each of which holds for all variants.",
    lambda row, place: breaks(row),
    places=where_any(breaks),
)
FIGURES = (TOOL_CALLS_BREAK,)
