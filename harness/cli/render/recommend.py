"""The output of ``qharness recommend``: the answer, the admissible variants, and why the others were rejected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from harness.analysis.choice import Recommendation
from harness.report.answer import answer, name, reasons
from harness.report.recommendation import FOOT, cells, headings, place_words
from harness.report.terminal import Rows, line, show_parts


def show(recommendations: Sequence[Recommendation]) -> None:
    """A block for each table."""
    show_parts(part for number, each in enumerate(recommendations) for part in _block(number, each))


def _block(number: int, recommendation: Recommendation) -> Iterator[Text | Rows | str]:
    if number:
        yield ""
    yield line(recommendation.table.model, "bold")
    yield answer(recommendation).sentence
    yield from (f"  {remark}" for remark in _remarks(recommendation))
    yield line(place_words(recommendation), "dim")
    if recommendation.admissible:
        table = Rows(
            (heading, "left" if column == 1 else "right") for column, heading in enumerate(headings(recommendation))
        )
        for rank, each in enumerate(recommendation.admissible, 1):
            table.add(*cells(recommendation, rank, each))
        yield table
        yield line(FOOT, "dim")
    if recommendation.rejected:
        table = Rows((("rejected", "left"), ("why", "left")))
        for each in recommendation.rejected:
            table.add(name(each.row), "; ".join(reasons(each)))
        yield table


def _remarks(recommendation: Recommendation) -> Iterable[str]:
    conclusion = answer(recommendation)
    yield from (f"uncertain: {doubt}" for doubt in conclusion.uncertain)
    yield from (f"⚠ {label.sentence}" for label in (*conclusion.noted, *recommendation.table.labels))
