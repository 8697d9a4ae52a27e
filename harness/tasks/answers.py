"""Answers that a model wrote: what happened in each of them, and their evidence in a record.

The evidence has one value per answer, under the answer's id: ``gsm8k:3``, or ``gsm8k:3#2`` for the third sample of a
question. The answers of a question are one cluster, or part of the cluster that the recipe names. Beside the aspects
(see ``aspects``) there are ``answer_text``, with the score as value, and once per question ``answer_prompt`` and
``answer_target``; what was written stands where an item's id usually does, and the answer or question in the place of
the cluster. Long texts are shortened in the middle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from harness.core.identity import Scalar
from harness.core.record import Measurement
from harness.tasks.aspects import (
    ASPECT_BY_NAME,
    FORMAT,
    LOOPS,
    LOST,
    SECONDS,
    THINKING,
    TOKENS,
    TRUNCATED,
    UNFINISHED,
)
from harness.tasks.loops import loop_tokens
from harness.tasks.thinking import Thinking

VERSION = 1
TEXT, PROMPT, TARGET = "answer_text", "answer_prompt", "answer_target"
"""The metrics whose items are texts."""
MOST_CHARACTERS = 4096
"""Of one text that is kept."""
MOST_IN_ALL = 2**25
"""Characters of all texts of a record; many texts are shortened further."""
FEWEST_CHARACTERS = 256
CUT = " […] "
NOTHING = ("", "[invalid]")
"""What lm-eval's filters give if they find no answer."""
MOST_CUTS = 64
"""Places of an answer at which it is read as if it ended there."""
MOST_SCORED = 16
"""Of what the filters find at these places, how much is scored: a scorer may take seconds to compare two formulas."""
T = TypeVar("T")
_ENDS = re.compile(r"[.!?](?=\s)|\n")


@dataclass(frozen=True)
class Scored:
    """The score of a text by each filter of its task, the first one first, and what each extracts, if it is text."""

    scores: Mapping[str, float]
    extracted: Mapping[str, str | None]

    @property
    def first(self) -> float:
        return next(iter(self.scores.values()))

    @property
    def right_by_any(self) -> bool:
        return any(score == 1 for score in self.scores.values())


@dataclass(frozen=True)
class Completion:
    """What was written after a prompt.

    ``text`` is what lm-eval scores: without special tokens, after the token that ends the thinking if there is one, and
    cut at the first stop sequence. ``whole`` has the special tokens, and ``thinking`` is the thinking in it. ``tokens``
    are all that were written, without the end token; ``truncated`` if the limit of tokens ended them and nothing else
    did. ``seconds`` is this text's share of the time in which the model wrote: a step of a batch counts in equal parts
    for its texts, and if the model schedules texts itself, its time is shared by their tokens.
    """

    text: str
    whole: str
    tokens: tuple[int, ...]
    truncated: bool
    seconds: float
    thinking: Thinking


@dataclass(frozen=True)
class WrittenAnswer:
    """One answer: its id, its question's, the cluster it belongs to, its text, its score, and its aspects by name."""

    item: str
    question: str
    cluster: str
    text: str
    score: float
    aspects: Mapping[str, float]


@dataclass(frozen=True)
class Question:
    """A question as it was asked, and the expected answer."""

    item: str
    prompt: str
    target: str


def aspects(answer: Completion, scored: Scored, score: Callable[[Sequence[str]], Iterable[Scored]]) -> dict[str, float]:
    """What happened in one answer; ``score`` scores its beginnings as answers to the same question."""
    extracted = [each for each in scored.extracted.values() if each is not None]
    nothing = bool(extracted) and all(each.strip() in NOTHING for each in extracted)
    found = {
        TOKENS.name: float(len(answer.tokens)),
        THINKING.name: float(answer.thinking.tokens),
        SECONDS.name: answer.seconds,
        TRUNCATED.name: float(answer.truncated),
        UNFINISHED.name: float(nothing or not answer.thinking.ended),
        LOOPS.name: float(loop_tokens(answer.tokens) > 0),
        LOST.name: float(not scored.right_by_any and any(each.right_by_any for each in score(beginnings(answer.text)))),
    }
    if len(scored.scores) > 1:
        found[FORMAT.name] = float(scored.first != 1 and scored.right_by_any)
    return found


def values_per_question(samples: int) -> int:
    """The fewest values of a question that is answered so many times: a score, and of several what happened in each."""
    if samples == 1:
        return 1
    kept = len(ASPECT_BY_NAME.keys() - {THINKING.name, FORMAT.name})  # not every task has these
    return samples * (1 + len((TEXT,)) + kept) + len((PROMPT, TARGET))


def beginnings(text: str) -> list[str]:
    """The text as if it had ended at the end of a sentence or a line; evenly chosen ones if there are many."""
    ends = [match.end() for match in _ENDS.finditer(text) if text[match.end() :].strip()]
    return [text[:end] for end in spaced(ends, MOST_CUTS)]


def spaced(items: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of the items, evenly chosen, the last one among them."""
    step = max(1, -(-len(items) // most))
    return items[::-1][::step][::-1]


def evidence(
    answers: Sequence[WrittenAnswer], questions: Sequence[Question], protocol: Mapping[str, Scalar]
) -> Iterator[Measurement]:
    """The measurements of a task's answers: the aspects that all of them have, and the texts."""
    items, clusters = tuple(each.item for each in answers), tuple(each.cluster for each in answers)
    for name, aspect in ASPECT_BY_NAME.items():
        if all(name in each.aspects for each in answers):
            values = tuple(each.aspects[name] for each in answers)
            if name == THINKING.name and not any(values):
                continue
            yield Measurement(
                name, aspect.version, aspect.unit, aspect.direction, "paired", values, protocol, (), items, clusters
            )
    size = max(FEWEST_CHARACTERS, min(MOST_CHARACTERS, MOST_IN_ALL // max(1, len(answers))))
    yield _texts(TEXT, [each.score for each in answers], [each.text for each in answers], items, protocol, size)
    names = tuple(each.item for each in questions)
    for metric, texts in (
        (PROMPT, [each.prompt for each in questions]),
        (TARGET, [each.target for each in questions]),
    ):
        yield _texts(metric, [float(len(text)) for text in texts], texts, names, protocol, size)


def _texts(
    metric: str,
    values: Sequence[float],
    texts: Sequence[str],
    names: Sequence[str],
    protocol: Mapping[str, Scalar],
    size: int,
) -> Measurement:
    return Measurement(
        metric,
        VERSION,
        "score" if metric == TEXT else "character",
        "neither",
        "exact",
        tuple(values),
        protocol,
        (),
        tuple(shortened(text, size) for text in texts),
        tuple(names),
    )


def shortened(text: str, size: int) -> str:
    """The beginning and the end of a long text: the last two thirds say how it went."""
    if len(text) <= size:
        return text
    head = (size - len(CUT)) // 3
    return text[:head] + CUT + text[len(text) - (size - len(CUT) - head) :]


def majority(answers: Sequence[tuple[str, float]]) -> float:
    """The score of the answer given most often, from what was extracted of each and its score.

    Of answers given equally often each is as likely to be taken. Answers of which nothing could be extracted do not
    vote; if none votes, the score is 0.
    """
    votes: dict[str, list[float]] = {}
    for extracted, score in answers:
        if extracted.strip() not in NOTHING:
            votes.setdefault(extracted.strip().casefold(), []).append(score)
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    winners = [sum(scores) / len(scores) for scores in votes.values() if len(scores) == most]
    return sum(winners) / len(winners)
