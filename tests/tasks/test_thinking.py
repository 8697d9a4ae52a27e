"""Where thinking begins and ends, by the marks of several families of models."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from harness.tasks.thinking import KNOWN, Thinking, marks_of, thinking


def decode(tokens: Sequence[int]) -> str:
    """One token per character."""
    return "".join(map(chr, tokens))


def of(text: str, prompt: str = "Q: 1+1?\n", marks: Sequence[tuple[str, str]] = KNOWN) -> Thinking:
    return thinking([ord(each) for each in text], prompt, decode, marks)


@pytest.mark.parametrize(("opening", "closing"), KNOWN)
def test_thinking_counts_its_marks_and_nothing_after_them(opening: str, closing: str) -> None:
    thought = f"{opening}one and one{closing}"
    long, rest, endless = len(thought), len(f"one and one{closing}"), len(f"{opening}one and one is")
    assert of(f"{thought}It is 2.") == Thinking(long, ended=True, end=long)
    assert of(f"Well. {thought}It is 2.") == Thinking(long, ended=True, end=len("Well. ") + long)
    assert of(f"{opening}one and one is") == Thinking(endless, ended=False, end=endless)
    assert of(f"one and one{closing}2", prompt=f"Q: 1+1?\n{opening}\n") == Thinking(rest, end=rest)
    assert of("one and one", prompt=f"Q: 1+1?\n{opening}\n") == Thinking(11, ended=False, end=11)
    assert of(f"one and one{closing}2") == Thinking(rest, end=rest), "the template's own opening is not known"


def test_an_answer_without_thinking_has_none() -> None:
    assert of("It is 2 < 3.") == Thinking(0, ended=True)
    assert of("") == Thinking(0, ended=True)


def test_the_last_of_several_thoughts_ends_it() -> None:
    text = "<think>a</think>b<think>c</think>"
    assert of(f"{text}2").tokens == len(text)


@pytest.mark.parametrize(("opening", "closing"), KNOWN)
def test_a_later_thought_may_be_the_one_that_never_ends(opening: str, closing: str) -> None:
    text = f"{opening}a{closing}b{opening}c c c"
    assert of(text) == Thinking(len(text), ended=False, end=len(text))
    given = f"a{closing}b{opening}c"
    assert of(given, prompt=opening) == Thinking(len(given), ended=False, end=len(given))


def test_the_analysis_of_gpt_oss_ends_before_a_call_too() -> None:
    thought = "<|channel|>analysis<|message|>Weather.<|end|>"
    call = "<|start|>assistant<|channel|>commentary to=functions.get_weather <|message|>{}<|call|>"
    assert of(thought + call) == Thinking(len(thought), end=len(thought))


def test_marks_are_those_of_the_chat_template() -> None:
    own = "{% set content = content.split('</my_reasoning>')[-1] %}"
    assert marks_of(SimpleNamespace(chat_template=own)) == (("<my_reasoning>", "</my_reasoning>"),)
    mistral = "[THINK]{{ block }}[/THINK]"
    assert marks_of(SimpleNamespace(chat_template=mistral)) == (("[THINK]", "[/THINK]"),)
    gpt_oss = "<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|channel|>final<|message|>"
    assert marks_of(SimpleNamespace(chat_template=gpt_oss)) == (KNOWN[6],)
    assert marks_of(SimpleNamespace(chat_template=None)) == KNOWN
    assert marks_of(SimpleNamespace(chat_template={"default": own})) == (("<my_reasoning>", "</my_reasoning>"),)
