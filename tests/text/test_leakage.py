"""How far an evaluation repeats itself, against a plain count."""

from __future__ import annotations

import pytest

from harness.core.metric import Windows
from harness.text.leakage import halves_overlap


def evaluation(tokens: list[list[int]], firsts: list[int]) -> Windows:
    return Windows(tokens, firsts, [str(index) for index in range(len(tokens))], {})


def test_a_text_written_twice_repeats_all_but_the_seam() -> None:
    """128 tokens have 113 runs of 16. Of the last 57, the first 8 cross the seam and stand nowhere else."""
    once = list(range(64))
    assert halves_overlap(evaluation([once + once], [1])) == pytest.approx(49 / 57)
    assert halves_overlap(evaluation([once, once], [1, 1])) == 1.0


def test_a_text_that_says_everything_once_repeats_nothing() -> None:
    assert halves_overlap(evaluation([list(range(64)), list(range(64, 128))], [1, 1])) == 0.0


def test_windows_that_overlap_are_not_taken_for_repetition() -> None:
    tokens = list(range(100))
    sliding = evaluation([tokens[at : at + 40] for at in range(0, 61, 10)], [1, *[30] * 6])
    assert halves_overlap(sliding) == 0.0


def test_half_of_the_second_half_was_said_before() -> None:
    first, other = list(range(40)), list(range(100, 140))
    assert halves_overlap(evaluation([first, list(range(40, 80)), first, other], [1] * 4)) == 0.5


def test_a_text_of_less_than_a_run_has_no_repetition() -> None:
    assert halves_overlap(evaluation([[1, 2, 3]], [1])) == 0.0
