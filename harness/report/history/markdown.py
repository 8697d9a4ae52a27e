"""Figures over time as Markdown: the changes, the series (folded), runs without a figure."""

from __future__ import annotations

from collections.abc import Iterable

from harness.analysis.history.series import History, LevelChange, Series
from harness.report.comparison.words import variant
from harness.report.escape import markdown as escape
from harness.report.history import words

CHANGES = ("When", "Session", "Variant", "Metric", "Before → after", "Change", "", "What else changed")
SERIES = ("Variant", "Metric", "Sessions", "Over time", "Oldest → newest", "Changes")


def markdown(found: History) -> str:
    """Text from records is escaped and cannot leave its cell."""
    parts = [f"## qharness history: {escape(words.headline(found))}"]
    listed = list(words.changes(found))
    if listed:
        parts.append(_table(CHANGES, (_change(series, change) for series, change in listed)))
    if found.series:
        table = _table(SERIES, map(_series, found.series))
        parts.append(f"<details><summary>All {len(found.series)} series</summary>\n\n{table}\n\n</details>")
    notes = [f"- {escape(line)}" for line in words.notes(found)]
    if notes:
        parts.append("### Without a figure\n\n" + "\n".join(notes))
    if any(not change.matters for _, change in listed):
        parts.append("In brackets: below the threshold of its gate.")
    return "\n\n".join(parts) + "\n"


def _change(series: Series, change: LevelChange) -> list[str]:
    return [
        words.when(change.started_at),
        change.session,
        variant(series),
        words.subject(series),
        words.levels(series, change),
        words.size(series, change),
        words.judgement(change),
        "; ".join((*change.notes, *words.around(change))) or "nothing recorded",
    ]


def _series(series: Series) -> list[str]:
    apart = f" ({words.apart(series)})" if series.apart else ""
    return [
        variant(series),
        words.subject(series) + apart,
        str(len(series.points)),
        words.sparkline([point.value for point in series.points]),
        words.span(series),
        words.summary(series),
    ]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
