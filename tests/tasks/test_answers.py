"""What happened in an answer, and how it is kept."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from harness.tasks.answers import (
    CUT,
    MOST_CUTS,
    Completion,
    Question,
    Scored,
    WrittenAnswer,
    aspects,
    beginnings,
    evidence,
    majority,
    shortened,
)
from harness.tasks.thinking import Thinking

RIGHT, WRONG = Scored({"strict": 1.0}, {"strict": "18"}), Scored({"strict": 0.0}, {"strict": "19"})


def what_happened(
    text: str = "It is 19.",
    tokens: Sequence[int] = (1, 2, 3),
    truncated: bool = False,
    thought: Thinking = Thinking(),  # noqa: B008 - frozen
    scored: Scored = WRONG,
) -> dict[str, float]:
    def score(texts: Sequence[str]) -> list[Scored]:
        return [RIGHT if each.rstrip(".").endswith("18") else WRONG for each in texts]

    found = aspects(Completion(text, text, tuple(tokens), truncated, 0.5, thought), scored, score)
    return {name.removeprefix("answer_"): value for name, value in found.items()}


def test_a_plain_answer_has_no_fault() -> None:
    assert what_happened() == {
        "tokens": 3,
        "thinking_tokens": 0,
        "seconds": 0.5,
        "truncated": 0,
        "unfinished": 0,
        "loops": 0,
        "lost": 0,
    }


@pytest.mark.parametrize(
    ("fault", "given"),
    [
        ("truncated", {"truncated": True}),
        ("unfinished", {"thought": Thinking(3, ended=False)}),
        ("unfinished", {"scored": Scored({"strict": 0.0, "loose": 0.0}, {"strict": "[invalid]", "loose": " "})}),
        ("loops", {"tokens": [4, 5] * 40}),
        ("lost", {"text": "So it is 18. No, wait: it is 19."}),
        ("format_faults", {"scored": Scored({"strict": 0.0, "loose": 1.0}, {"strict": "[invalid]", "loose": "18"})}),
    ],
)
def test_each_fault_is_found_alone(fault: str, given: dict[str, object]) -> None:
    found = what_happened(**given)  # type: ignore[arg-type]
    shares = {name for name, value in found.items() if value and name not in ("tokens", "thinking_tokens", "seconds")}
    assert shares == {fault}


def test_a_right_answer_was_not_lost_on_the_way() -> None:
    assert what_happened("So it is 18. Yes: 18.", scored=RIGHT)["lost"] == 0


def test_beginnings_end_where_sentences_and_lines_do() -> None:
    assert beginnings("It is 1.5 m. Then\n2. Done.") == ["It is 1.5 m.", "It is 1.5 m. Then\n", "It is 1.5 m. Then\n2."]
    assert beginnings("no end") == []
    many = beginnings("x.\n" * 1000)
    assert len(many) <= MOST_CUTS
    assert many[-1] == "x.\n" * 999, "the latest are kept"


def test_the_majority_is_of_what_was_extracted() -> None:
    assert majority([("18", 1.0), ("18 ", 1.0), ("19", 0.0)]) == 1
    assert majority([("18", 1.0), ("19", 0.0), ("19", 0.0)]) == 0
    assert majority([("18", 1.0), ("19", 0.0)]) == 0.5, "a tie is drawn by lot"
    assert majority([("18", 1.0), ("[invalid]", 0.0), ("[invalid]", 0.0)]) == 1, "who says nothing does not vote"
    assert majority([("[invalid]", 0.0)]) == 0


def test_evidence_has_a_value_per_answer_and_only_what_all_answers_have() -> None:
    answers = [
        WrittenAnswer(
            f"q:{question}#{sample}", f"q:{question}", f"q:{question}", "x" * 9000, 1.0, {"answer_tokens": 3.0, **extra}
        )
        for question in range(2)
        for sample, extra in enumerate(({"answer_lost": 1.0}, {}))
    ]
    found = {each.metric: each for each in evidence(answers, [Question("q:0", "1+1?", "2")], {"task": "q"})}
    assert set(found) == {"answer_tokens", "answer_text", "answer_prompt", "answer_target"}
    assert found["answer_tokens"].cluster_ids == ("q:0", "q:0", "q:1", "q:1")
    assert found["answer_text"].cluster_ids == found["answer_tokens"].item_ids
    assert {len(text) for text in found["answer_text"].item_ids} == {4096}
    assert found["answer_target"].item_ids == ("2",)


def test_a_long_text_keeps_its_ends() -> None:
    text = "".join(map(str, range(1000)))
    short = shortened(text, 100)
    head, tail = short.split(CUT)
    assert len(short) == 100
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(tail) > len(head)
