"""Loops are found where a text repeats itself, and not in text that people write."""

from __future__ import annotations

import inspect
import json
import random
import re
import statistics
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from harness.tasks.loops import LEAST, LONGEST, REPEATS, loop_tokens

Shared = Callable[[str], Path]


def unlike(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(10_000), k=length)


@pytest.mark.parametrize("period", [1, 3, 17, 100, LONGEST])
@pytest.mark.parametrize("after", [0, 50])
def test_a_repeated_stretch_is_found_wherever_it_is(period: int, after: int) -> None:
    repeats = max(REPEATS, -(-LEAST // period))
    stretch = unlike(period, 1) * repeats
    assert loop_tokens(unlike(30, 2) + stretch + unlike(after, 3)) == len(stretch)
    assert loop_tokens(unlike(30, 2) + stretch[:-1] + unlike(after, 3)) == (
        len(stretch) - 1 if _enough(period, repeats) else 0
    )


def _enough(period: int, repeats: int) -> bool:
    return period * repeats - 1 >= max(REPEATS * period, LEAST)


def test_what_is_repeated_too_rarely_or_changes_is_no_loop() -> None:
    assert loop_tokens([]) == 0
    assert loop_tokens(unlike(40) * (REPEATS - 1)) == 0
    assert loop_tokens([5] * (LEAST - 1)) == 0
    counting = [token for number in range(100) for token in (1, 2, 3, 1000 + number)]
    assert loop_tokens(counting) == 0


def words(text: str) -> list[int]:
    """Numbers of words and of runs of one other character, about as a tokenizer cuts code and prose."""
    numbers = dict[str, int]()
    ids = count()
    cut = (match[0] for match in re.finditer(r"\w+|(\W)\1*", text))
    return [numbers.setdefault(each, next(ids)) for each in cut]


def test_prose_code_and_worked_answers_do_not_loop(shared: Shared) -> None:
    """Tables of many columns included."""
    answers = shared("data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["answer"] for line in answers]
    texts += [inspect.getsource(module) for module in (statistics, random, inspect, json)]
    table = "| name | perplexity | KL | size |\n|---|---|---|---|\n" + "\n".join(
        f"| rtn {bits} | {bits * 1.1:.2f} | {bits / 7:.3f} | {bits} GB |" for bits in range(60)
    )
    looping = [text for text in [*texts, table] if loop_tokens(words(text))]
    assert looping == []
