"""The rows that many inputs become: every prediction is read once, from tokens that see exactly what is theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from harness.tasks.prefix_tree import Row, ScoringInput, common, pack

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)
HEADER = tuple(range(100, 140))


@st.composite
def inputs_of_all_kinds(draw: st.DrawFn) -> list[ScoringInput]:
    """Alike and unlike, some behind a long header, some the beginning of another one."""
    drawn = draw(st.lists(TOKENS, min_size=1, max_size=25))
    headed = [HEADER + tokens if draw(st.booleans()) else tokens for tokens in drawn]
    begun = [tokens[: draw(st.integers(1, len(tokens)))] for tokens in headed if draw(st.booleans())]
    return [ScoringInput(tokens, draw(st.integers(0, len(tokens) - 1))) for tokens in headed + begun]


def seen_by(rows: Sequence[Row], row: Row, place: int) -> tuple[int, ...]:
    """The tokens that the one in a place of a row sees, itself the last, by the definition of ``visible_until``."""
    below = () if row.on is None else seen_by(rows, rows[row.on], len(rows[row.on].tokens) - 1)
    return below + tuple(int(row.tokens[at]) for at in range(place + 1) if row.visible_until[at] > place)


@given(inputs_of_all_kinds(), st.integers(1, 80))
def test_every_prediction_is_read_once_by_a_token_that_sees_its_input(inputs: list[ScoringInput], budget: int) -> None:
    rows = pack(inputs, budget)
    read = Counter()
    for row in rows:
        for owner, position, place in zip(*vars(row.reads).values(), strict=True):
            read[int(owner), int(position)] += 1
            assert seen_by(rows, row, place) == inputs[owner].tokens[: position + 1]
    wanted = {(owner, at) for owner, each in enumerate(inputs) for at in range(each.first, len(each.tokens))}
    assert read == Counter(wanted)


@given(inputs_of_all_kinds(), st.integers(1, 80))
def test_rows_keep_the_budget_and_stand_on_kept_ones_before_them(inputs: list[ScoringInput], budget: int) -> None:
    rows = pack(inputs, budget)
    for index, row in enumerate(rows):
        assert not (row.branches and (row.kept or len(row.tokens) > budget))
        assert row.on is None or (row.on < index and rows[row.on].kept)
    assert all(any(other.on == index for other in rows) for index, row in enumerate(rows) if row.kept)


@given(inputs_of_all_kinds(), st.integers(1, 80))
def test_never_more_tokens_than_input_by_input_and_as_few_as_can_be_in_one_row(
    inputs: list[ScoringInput], budget: int
) -> None:
    assert sum(len(row.tokens) for row in pack(inputs, budget)) <= sum(map(len, {each.tokens for each in inputs}))
    beginnings = {each.tokens[:end] for each in inputs for end in range(1, len(each.tokens) + 1)}
    assert [len(row.tokens) for row in pack(inputs, 10_000)] == [len(beginnings)]


def test_choices_of_one_question_share_it() -> None:
    question = (1, 2, 3)
    (row,) = pack([ScoringInput((*question, 7, 8), 2), ScoringInput((*question, 9), 2)], 100)
    assert row.tokens.tolist() == [1, 2, 3, 7, 8, 9]
    assert row.visible_until.tolist() == [6, 6, 6, 5, 5, 6]


def test_a_header_of_all_questions_is_computed_once() -> None:
    questions = [
        ScoringInput((*HEADER, question, *range(answer, answer + 5)), 40) for question in range(9) for answer in (0, 7)
    ]
    rows = pack(questions, 33)
    assert [row.kept for row in rows] == [True] + [False] * 3
    assert rows[0].tokens.tolist() == list(HEADER)
    assert sum(len(row.tokens) for row in rows) == 40 + 9 * (1 + 5 + 5)


def test_a_long_context_is_kept_only_while_its_own_questions_follow() -> None:
    contexts = [(text, *HEADER) for text in range(3)]
    rows = pack([ScoringInput((*context, answer), 40) for context in contexts for answer in (0, 1)], 30)
    assert [(row.kept, row.on) for row in rows] == [
        (True, None),
        (False, 0),
        (True, None),
        (False, 2),
        (True, None),
        (False, 4),
    ]


def test_a_short_beginning_is_repeated_rather_than_kept() -> None:
    rows = pack([ScoringInput((5, token, *range(10, 20)), 0) for token in range(4)], 30)
    assert [(row.kept, len(row.tokens)) for row in rows] == [(False, 23), (False, 23)]


def test_rows_are_cut_between_questions() -> None:
    """Cut where they are full, the second row would repeat a question's ten tokens."""
    inputs = [
        ScoringInput((*range(question, question + 10), answer), 9) for question in (0, 50, 90) for answer in range(4)
    ]
    assert sorted(len(row.tokens) for row in pack(inputs, 38)) == [14, 28]


def test_thousands_of_inputs_that_begin_one_another() -> None:
    rows = pack([ScoringInput(tuple(range(end)), end - 1) for end in range(1, 3001)], 64)
    assert sum(len(row.tokens) for row in rows) == 3000
    steps = [ScoringInput((*range(end), -1), end) for end in range(1, 1000)]
    assert sum(len(row.reads.places) for row in pack(steps, 64)) == len(steps)


def test_no_inputs_make_no_rows() -> None:
    assert pack([], 100) == []


def test_common_beginnings() -> None:
    assert common((1, 2, 3), (1, 2, 4, 5)) == 2
    assert common((1, 2), (1, 2, 3)) == 2
    assert common(np.array([], dtype=np.int64), (1,)) == 0
