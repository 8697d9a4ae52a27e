"""What ``qharness recommend`` prints: the answer, the admissible variants in order, and why the others fell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.analysis.choice import Recommendation
from harness.report.answer import answer, name, reasons
from harness.report.recommendation import FOOT, cells, headings, place_words


def show(recommendations: Sequence[Recommendation]) -> None:
    """A block for each table; what a record says is never read as markup."""
    console = Console(highlight=False)
    for number, found in enumerate(recommendations):
        if number:
            console.print()
        _show_one(console, found)


def _show_one(console: Console, found: Recommendation) -> None:
    said = answer(found)
    console.print(Text(found.table.model, style="bold"))
    console.print(Text(said.sentence))
    for line in _remarks(found):
        console.print(Text(f"  {line}"))
    console.print(Text(place_words(found), style="dim"))
    if found.admissible:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column, heading in enumerate(headings(found)):
            table.add_column(Text(heading), justify="left" if column == 1 else "right", overflow="fold")
        for rank, each in enumerate(found.admissible, 1):
            table.add_row(*map(Text, cells(found, rank, each)))
        console.print(table)
        console.print(Text(FOOT, style="dim"))
    if found.rejected:
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("rejected", overflow="fold")
        table.add_column("why", overflow="fold")
        for each in found.rejected:
            table.add_row(Text(name(each.row)), Text("; ".join(reasons(each))))
        console.print(table)


def _remarks(found: Recommendation) -> Iterable[str]:
    said = answer(found)
    yield from (f"uncertain: {doubt}" for doubt in said.uncertain)
    yield from (f"⚠ {label.sentence}" for label in (*said.noted, *found.table.labels))
