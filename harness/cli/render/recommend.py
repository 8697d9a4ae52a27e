"""The output of ``qharness recommend``: the answer, the admissible variants, and why the others were rejected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.analysis.choice import Recommendation
from harness.report.answer import answer, name, reasons
from harness.report.recommendation import FOOT, cells, headings, place_words


def show(recommendations: Sequence[Recommendation]) -> None:
    """A block for each table; text from records is never interpreted as markup."""
    console = Console(highlight=False)
    for number, recommendation in enumerate(recommendations):
        if number:
            console.print()
        _show_one(console, recommendation)


def _show_one(console: Console, recommendation: Recommendation) -> None:
    conclusion = answer(recommendation)
    console.print(Text(recommendation.table.model, style="bold"))
    console.print(Text(conclusion.sentence))
    for line in _remarks(recommendation):
        console.print(Text(f"  {line}"))
    console.print(Text(place_words(recommendation), style="dim"))
    if recommendation.admissible:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column, heading in enumerate(headings(recommendation)):
            table.add_column(Text(heading), justify="left" if column == 1 else "right", overflow="fold")
        for rank, each in enumerate(recommendation.admissible, 1):
            table.add_row(*map(Text, cells(recommendation, rank, each)))
        console.print(table)
        console.print(Text(FOOT, style="dim"))
    if recommendation.rejected:
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("rejected", overflow="fold")
        table.add_column("why", overflow="fold")
        for each in recommendation.rejected:
            table.add_row(Text(name(each.row)), Text("; ".join(reasons(each))))
        console.print(table)


def _remarks(recommendation: Recommendation) -> Iterable[str]:
    conclusion = answer(recommendation)
    yield from (f"uncertain: {doubt}" for doubt in conclusion.uncertain)
    yield from (f"⚠ {label.sentence}" for label in (*conclusion.noted, *recommendation.table.labels))
