"""The remark below an inconclusive figure: what would show, or that the units are too few for any difference to."""

from __future__ import annotations

import numpy as np
import pytest

from harness.core.record import Measurement
from harness.figures.notes import noise_note, verdict_note
from harness.stats.comparison import Comparison, holm
from harness.stats.rule import compare


def found(units: int, tests: int = 1) -> Comparison:
    """Of units that differ by amounts around 0.2."""
    differences = 0.2 + np.random.default_rng(0).standard_normal(units)
    ours, theirs = (
        Measurement("perplexity", 1, "nat", "lower", "paired", tuple(values), item_ids=tuple(map(str, range(units))))
        for values in (differences, np.zeros(units))
    )
    return holm([compare(ours, theirs, 0.01, "lower")] * tests)[0]


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


def test_otherwise_the_difference_that_would_show_is_said() -> None:
    alone, among = (verdict_note(found(9, tests))[0].text for tests in (1, 8))
    assert alone.startswith("inconclusive (±")
    assert alone.endswith(" would show)")
    assert among != alone
    assert noise_note(found(9))[0].text == "inconclusive"
    assert verdict_note(None) == noise_note(None) == ()
