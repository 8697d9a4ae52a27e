"""The output of ``qharness recommend``: the answer, the admissible variants, and why the others were rejected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from harness.report.shown_recommendation import FOOT, ShownRecommendation
from harness.report.terminal import Rows, line, show_parts


def show(recommendations: Sequence[ShownRecommendation]) -> None:
    """A block for each table."""
    show_parts(part for number, each in enumerate(recommendations) for part in _block(number, each))


def _block(number: int, shown: ShownRecommendation) -> Iterator[Text | Rows | str]:
    if number:
        yield ""
    yield line(shown.model, "bold")
    yield shown.sentence
    yield from (f"  uncertain: {doubt}" for doubt in shown.uncertain)
    yield from (f"  ⚠ {warning}" for warning in shown.warnings)
    yield line(shown.place, "dim")
    if shown.admissible:
        table = Rows((heading, "left" if column == 1 else "right") for column, heading in enumerate(shown.headings))
        for cells in shown.admissible:
            table.add(*cells)
        yield table
        yield line(FOOT, "dim")
    if shown.rejected:
        table = Rows((("rejected", "left"), ("why", "left")))
        for variant, why in shown.rejected:
            table.add(variant, why)
        yield table
