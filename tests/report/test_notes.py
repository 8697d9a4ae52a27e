"""The remark below an inconclusive figure: what would show, or that the units are too few for any difference to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from harness.core.record import Measurement
from harness.figures.figure import Note
from harness.figures.notes import noise_note, verdict_note
from harness.stats.comparison import Comparison, holm
from harness.stats.rule import compare


def alone(differences: Sequence[float]) -> Comparison:
    items = tuple(map(str, range(len(differences))))
    ours = Measurement("loss", 1, "nat", "lower", "paired", tuple(differences), item_ids=items)
    return compare(ours, replace(ours, values=(0.0,) * len(items)), 0.01, "lower")


def found(units: int, tests: int = 1) -> Comparison:
    """Of units that differ by amounts around 0.2."""
    return holm([alone(0.2 + np.random.default_rng(0).standard_normal(units))] * tests)[0]


@pytest.mark.parametrize(
    ("units", "tests", "text"),
    [
        (2, 1, "inconclusive (2 items are too few)"),
        (2, 8, "inconclusive (2 items are too few)"),
        (8, 8, "inconclusive (8 items are too few for 8 comparisons)"),
    ],
)
def test_units_that_are_too_few_for_any_difference_are_said(units: int, tests: int, text: str) -> None:
    comparison = found(units, tests)
    assert [note.text for note in verdict_note(comparison)] == [text]
    assert [note.text for note in noise_note(comparison)] == [text]


def test_a_test_of_few_units_may_find_something_once_others_have() -> None:
    """Holm asks less of the second."""
    few, many = alone([float(1 + each) for each in range(8)]), alone([float(1 + each) for each in range(40)])
    *_, last = holm([many, *[few] * 6])
    assert (last.can_find, verdict_note(last)) == (False, (Note("worse"),))
    assert noise_note(last) == (Note("above noise"),)


def test_otherwise_the_difference_that_would_show_is_said() -> None:
    one, among = (verdict_note(found(9, tests))[0].text for tests in (1, 8))
    assert one.startswith("inconclusive (±")
    assert one.endswith(" would show)")
    assert among != one
    assert noise_note(found(9))[0].text == "inconclusive"
    assert verdict_note(None) == noise_note(None) == ()
