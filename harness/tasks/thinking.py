"""Where a model's thinking ends in what it writes. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Marks = tuple[str, str]
"""What opens a model's thinking, and what ends it."""
KNOWN: tuple[Marks, ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
_CLOSING = re.compile(r"<(/)([\w:|-]*(?:think|reason|thought)[\w:|-]*)>|\[(/)([A-Z]*THINK[A-Z]*)\]")


@dataclass(frozen=True)
class Thinking:
    """``tokens`` of an answer's thinking, its marks included. ``ended`` is False if it never ended.

    ``end``: how many of the answer's tokens come before what follows the thinking.
    """

    tokens: int = 0
    ended: bool = True
    end: int = 0


def marks_of(tokenizer: Any) -> tuple[Marks, ...]:
    """The marks that the tokenizer's chat template names; those of known models if it names none."""
    template = getattr(tokenizer, "chat_template", None)
    text = template if isinstance(template, str) else "\n".join(map(str, (template or {}).values()))
    named = [
        (f"<{each[1]}>", f"</{each[1]}>") if each[1] else (f"[{each[3]}]", f"[/{each[3]}]") for each in _found(text)
    ]
    known = [marks for marks in KNOWN if all(mark.partition("<|message|>")[0] in text for mark in marks)]
    return tuple(dict.fromkeys([*known, *named])) or KNOWN


def _found(text: str) -> list[tuple[str, str, str, str]]:
    return _CLOSING.findall(text)


def thinking(
    tokens: Sequence[int], prompt: str, decode: Callable[[Sequence[int]], str], marks: Sequence[Marks]
) -> Thinking:
    """The thinking in an answer. ``decode`` keeps special tokens. The prompt itself may have opened it at its end."""
    text = decode(tokens)
    for opening, closing in marks:
        opened = prompt.rstrip().endswith(opening)
        begin, last = text.find(opening), text.rfind(opening)
        end = text.rfind(closing)
        if not opened and begin < 0 and end < 0:
            continue
        before = 0 if opened or begin < 0 or 0 <= text.find(closing) < begin else tokens_of(tokens, begin, decode)
        if end < max(last, 0):
            return Thinking(len(tokens) - before, ended=False, end=len(tokens))
        after = tokens_of(tokens, end + len(closing), decode)
        return Thinking(after - before, end=after)
    return Thinking()


def tokens_of(tokens: Sequence[int], characters: int, decode: Callable[[Sequence[int]], str]) -> int:
    """How many tokens it takes to write the first ``characters``, by bisection."""
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if len(decode(tokens[:middle])) >= characters:
            high = middle
        else:
            low = middle + 1
    return low
