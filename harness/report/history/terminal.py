"""Figures over time on a terminal: a line per series, and below what changed, the newest first."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING

from harness.analysis.history import Change, History, Series
from harness.report.history import words

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {True: "green", False: "bold red", None: "yellow"}


def terminal(found: History, width: int | None = None, colour: bool = False) -> str:
    """Plain text, with ANSI colours where asked for. Text of a record marks nothing up and moves no cursor."""
    from rich.console import Console
    from rich.text import Text

    file = StringIO()
    console = Console(
        file=file,
        width=width or 140,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
    )
    console.print(Text(words.headline(found), style="bold"))
    if found.series:
        console.print(_table(found))
    for line, style in _changes(found):
        console.print(Text(_plain(line), style=style))
    notes = list(words.notes(found))
    if notes:
        console.print(Text("\nWithout a figure:"))
        for line in notes:
            console.print(Text(_plain(f"  {line}")))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def show(found: History) -> None:
    """Prints it, as wide as the terminal is and in colour where it has any."""
    import shutil
    import sys

    tty = sys.stdout.isatty()
    sys.stdout.write(terminal(found, shutil.get_terminal_size((140, 24)).columns if tty else None, tty))


def _table(found: History) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("variant", "metric", "sessions", "over time", "oldest → newest", "changes"):
        table.add_column(column, overflow="fold", justify="right" if column == "sessions" else "left")
    for each in found.series:
        apart = f" ({words.apart(each)})" if each.apart else ""
        cells = [
            f"{each.model} × {each.method}",
            words.subject(each) + apart,
            str(len(each.points)),
            words.sparkline([point.value for point in each.points]),
            words.span(each),
        ]
        real = [change for change in each.changes if change.matters]
        style = STYLES[real[-1].better] if real else ""
        table.add_row(*(Text(_plain(cell)) for cell in cells), Text(_plain(words.summary(each)), style=style))
    return table


def _changes(found: History) -> Iterator[tuple[str, str]]:
    listed = list(words.changes(found))
    if listed:
        yield "\nChanges, the newest first:", "bold"
    for series, change in listed:
        yield f"  {_line(series, change)}", STYLES[change.better] if change.matters else ""
        for line in (*change.notes, *words.around(change)) or ("nothing that was recorded changed around it",):
            yield f"      {line}", ""
    if any(not change.matters for _, change in listed):
        yield "\nin brackets: smaller than the threshold of its gate", ""


def _line(series: Series, change: Change) -> str:
    name = f"{series.model} × {series.method}, {words.subject(series)}"
    told = f"{words.levels(series, change)} ({words.size(series, change)}): {words.judgement(change)}"
    return f"{words.when(change.started_at)} {change.session}: {name}: {told}"


def _plain(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
