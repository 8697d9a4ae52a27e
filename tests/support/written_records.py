"""Records of a task whose answers were written and then scored, with planted faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harness.core.model import MethodRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.tasks.answers import Completion, Question, Scored, WrittenAnswer, aspects, evidence, majority
from harness.tasks.evaluate import VERSION
from harness.tasks.thinking import Thinking

QUESTIONS, SAMPLES = 60, 4
PROTOCOL = {
    **{"task": "gsm8k", "fewshot": 0, "chat_template": None, "prompts_sha256": "p"},
    **{"samples": SAMPLES, "temperature": 0.6},
}
HOSTILE = "</pre><script>alert(1)</script>\u202e\x00 #### 7"
Write = Callable[[int, int], tuple[str, bool]]
"""From a question and a sample to a text and whether the limit ended it."""


def score(text: str) -> Scored:
    """By two filters, as gsm8k has: the number after ####, or the last one."""
    strict = text.partition("#### ")[2].split(" ")[0]
    numbers = [word.strip(".") for word in text.split() if word.strip(".").isdigit()]
    found = {"strict": strict or "[invalid]", "loose": numbers[-1] if numbers else "[invalid]"}
    return Scored({name: float(each == "7") for name, each in found.items()}, found)


def answered_task(bench: Any, method: MethodRef, write: Write, samples: int = SAMPLES) -> RunRecord:
    """A real record's evidence of answers that were planted: the worker's own functions find what happened."""
    written = []
    for sample in range(samples):
        for question in range(QUESTIONS):
            text, truncated = write(question, sample)
            scored = score(text)
            answer = Completion(text, text, tuple(map(ord, text)), truncated, 0.01 * len(text), Thinking())
            found = aspects(answer, scored, lambda all: list(map(score, all)))
            item = f"gsm8k:{question}#{sample}"
            written.append(
                WrittenAnswer(item, item[: item.index("#")], item[: item.index("#")], text, scored.first, found)
            )
    values = tuple(each.score for each in written)
    items, clusters = tuple(each.item for each in written), tuple(each.cluster for each in written)
    scored_by = {**PROTOCOL, "score": "exact_match", "filter": "strict", "aggregation": "mean"}
    measured = Measurement("task_score", VERSION, "score", "higher", "paired", values, scored_by, (), items, clusters)
    votes = [[each for each in written if each.question == f"gsm8k:{question}"] for question in range(QUESTIONS)]
    chosen = tuple(
        majority([(score(each.text).extracted["strict"] or "", each.score) for each in own]) for own in votes
    )
    names = tuple(f"gsm8k:{question}" for question in range(QUESTIONS))
    most = Measurement("task_majority", VERSION, "score", "higher", "paired", chosen, PROTOCOL, (), names)
    asked = [Question(name, f"What is 3 + 4? <b>{HOSTILE}</b>", "7") for name in names]
    return bench.record(  # type: ignore[no-any-return]
        bench.spec("task", method), Outcome("ok", measurements=(measured, most, *evidence(written, asked, PROTOCOL)))
    )


def well(question: int, sample: int) -> tuple[str, bool]:
    """Right in three samples of four, on two questions of three."""
    right = question % 3 and (question + sample) % 4
    return (f"Three and four. #### {7 if right else 8}", False)


def faulty(fault: Write) -> Write:
    """``fault`` in every fourth answer to even questions."""
    return lambda question, sample: (
        fault(question, sample) if question % 2 == sample % 4 == 0 else well(question, sample)
    )


FAULTS: Mapping[str, tuple[str, Write]] = {
    "truncates": ("answer_truncated", faulty(lambda question, sample: ("Three and four is a sum and", True))),
    "loops": ("answer_loops", faulty(lambda question, sample: ("Wait. " * 40 + "#### 8", False))),
    "gives up": ("answer_lost", faulty(lambda question, sample: ("It is 7. No, it is 9", False))),
    "forgets the format": ("answer_format_faults", faulty(lambda question, sample: ("The answer is 7", False))),
}


def method(name: str) -> MethodRef:
    return MethodRef("rtn", 1, {"as": name}, name, "on_load")


def faulty_sweep(bench: Any, none: MethodRef) -> list[RunRecord]:
    """A baseline that answers well, and a variant with each fault."""
    records = [bench.quality(none), answered_task(bench, none, well)]
    for name, (_, write) in FAULTS.items():
        records += [bench.quality(method(name), 4.5, 0.3), answered_task(bench, method(name), write)]
    return records
