"""The output of ``qharness recommend``: the answer, the admissible variants, and why the others were rejected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table
from rich.text import Text

from harness.analysis.choice import Recommendation
from harness.report.answer import answer, name, reasons
from harness.report.recommendation import FOOT, cells, headings, place_words
from harness.report.terminal import add_row, line, show_parts


def show(recommendations: Sequence[Recommendation]) -> None:
    """A block for each table."""
    show_parts(part for number, each in enumerate(recommendations) for part in _block(number, each))


def _block(number: int, recommendation: Recommendation) -> Iterator[Text | Table | str]:
    if number:
        yield ""
    yield line(recommendation.table.model, "bold")
    yield answer(recommendation).sentence
    yield from (f"  {remark}" for remark in _remarks(recommendation))
    yield line(place_words(recommendation), "dim")
    if recommendation.admissible:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column, heading in enumerate(headings(recommendation)):
            table.add_column(line(heading), justify="left" if column == 1 else "right", overflow="fold")
        for rank, each in enumerate(recommendation.admissible, 1):
            add_row(table, *cells(recommendation, rank, each))
        yield table
        yield line(FOOT, "dim")
    if recommendation.rejected:
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("rejected", overflow="fold")
        table.add_column("why", overflow="fold")
        for each in recommendation.rejected:
            add_row(table, name(each.row), "; ".join(reasons(each)))
        yield table


def _remarks(recommendation: Recommendation) -> Iterable[str]:
    conclusion = answer(recommendation)
    yield from (f"uncertain: {doubt}" for doubt in conclusion.uncertain)
    yield from (f"⚠ {label.sentence}" for label in (*conclusion.noted, *recommendation.table.labels))
