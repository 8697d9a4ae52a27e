"""Aspects: what is known of each answer that a model wrote, beside whether it is right.

Each is one measurement with a value per answer, and figures are derived from it: its mean, and the difference from the
baseline's, paired answer by answer. A task with aspects of its own adds them here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Aspect:
    """``name`` is the metric's. ``unit`` is ``share`` if each answer has it or has it not.

    ``heading`` and ``help`` are for readers; ``margin`` is a difference that does not matter: of shares, of a relative
    change otherwise. ``version`` increases when what counts as the aspect changes.
    """

    name: str
    unit: Literal["share", "token", "s"]
    direction: Literal["lower", "higher", "neither"]
    heading: str
    help: str
    margin: float = 0.01
    version: int = 1


TOKENS = Aspect(
    "answer_tokens",
    "token",
    "lower",
    "tokens",
    "Tokens of an answer, thinking included, without the end token.",
    margin=0.05,
)
THINKING = Aspect(
    "answer_thinking_tokens",
    "token",
    "lower",
    "thinking",
    "Tokens of an answer's thinking, by the marks of the chat template or of known models.",
    margin=0.05,
    version=2,  # 1 took thinking that began a second time for the answer
)
SECONDS = Aspect(
    "answer_seconds",
    "s",
    "neither",
    "seconds",
    "An answer's share of the time in which the model wrote, in batches of the engine's own.",
    margin=0.05,
)
TRUNCATED = Aspect(
    "answer_truncated",
    "share",
    "lower",
    "truncated",
    "Answers that the limit of tokens ended.",
)
UNFINISHED = Aspect(
    "answer_unfinished",
    "share",
    "lower",
    "no final answer",
    "Answers whose thinking never ended, or in which no filter of the task finds an answer.",
    version=2,  # 1 took thinking that began a second time for the answer
)
LOST = Aspect(
    "answer_lost",
    "share",
    "lower",
    "right, then lost",
    "Wrong answers that would have been right had they ended earlier, at the end of a sentence or a line.",
)
LOOPS = Aspect(
    "answer_loops",
    "share",
    "lower",
    "loops",
    "Answers in which up to 512 tokens are repeated four times or more in a row, over at least 64 tokens.",
)
FORMAT = Aspect(
    "answer_format_faults",
    "share",
    "lower",
    "format faults",
    "Answers that another filter of the task counts as right, and its first does not.",
)
ASPECTS: tuple[Aspect, ...] = (TOKENS, THINKING, SECONDS, TRUNCATED, UNFINISHED, LOST, LOOPS, FORMAT)
ASPECT_BY_NAME = {each.name: each for each in ASPECTS}
