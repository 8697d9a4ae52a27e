"""Figures over time on a terminal: a line per series, then the changes, newest first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.analysis.history.series import History, LevelChange, Series
from harness.report.comparison.words import variant
from harness.report.history import words
from harness.report.terminal import Head, Rows, line, written
from harness.report.terminal import show as show_rendered

if TYPE_CHECKING:
    from rich.text import Text

COLUMNS: tuple[Head, ...] = (
    ("variant", "left"),
    ("metric", "left"),
    ("sessions", "right"),
    ("over time", "left"),
    ("oldest → newest", "left"),
    ("changes", "left"),
)
STYLES = {True: "green", False: "bold red", None: "yellow"}


def terminal(found: History, width: int | None = None, colour: bool = False) -> str:
    """Plain text, with ANSI colours on request. Text from records cannot add markup or move the cursor."""
    return written(_parts(found), width or 140, colour)


def show(found: History) -> None:
    """Prints the history on the terminal."""
    show_rendered(lambda width, colour: terminal(found, width, colour))


def _parts(found: History) -> Iterator[Text | Rows | str]:
    yield line(words.headline(found), "bold")
    if found.series:
        yield _table(found)
    for sentence, style in _changes(found):
        yield line(sentence, style)
    notes = list(words.notes(found))
    if notes:
        yield ""
        yield "Without a figure:"
        yield from (f"  {note}" for note in notes)


def _table(found: History) -> Rows:
    table = Rows(COLUMNS)
    for each in found.series:
        apart = f" ({words.apart(each)})" if each.apart else ""
        real = [change for change in each.changes if change.matters]
        table.add(
            variant(each),
            words.subject(each) + apart,
            str(len(each.points)),
            words.sparkline([point.value for point in each.points]),
            words.span(each),
            (words.summary(each), STYLES[real[-1].better] if real else ""),
        )
    return table


def _changes(found: History) -> Iterator[tuple[str, str]]:
    listed = list(words.changes(found))
    if listed:
        yield "", ""
        yield "Changes, newest first:", "bold"
    for series, change in listed:
        yield f"  {_line(series, change)}", STYLES[change.better] if change.matters else ""
        for note in (*change.notes, *words.around(change)) or ("no other recorded change at that point",):
            yield f"      {note}", ""
    if any(not change.matters for _, change in listed):
        yield "", ""
        yield "in brackets: below the threshold of its gate", ""


def _line(series: Series, change: LevelChange) -> str:
    name = f"{variant(series)}, {words.subject(series)}"
    step = f"{words.levels(series, change)} ({words.size(series, change)}): {words.judgement(change)}"
    return f"{words.when(change.started_at)} {change.session}: {name}: {step}"
