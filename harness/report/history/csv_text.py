"""Figures over time as CSV: a line per figure at full precision, with ``change`` where a new level begins."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from harness.analysis.history.series import History, Series
from harness.report.escape import csv_cell

COLUMNS = (
    "model",
    "method",
    "engine",
    "metric",
    "where",
    "apart",
    "unit",
    "direction",
    "session",
    "started_at",
    "value",
    "n",
    "change",
    "change_relative",
    "change_matters",
    "environment",
)

Line = list[str | float | bool | None]


def csv_text(found: History) -> str:
    """``change`` is the difference of the two levels, as a fraction of the former if ``change_relative`` is true."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for series in found.series:
        writer.writerows([csv_cell(value) for value in line] for line in _lines(series))
    return out.getvalue()


def _lines(series: Series) -> Iterator[Line]:
    changes = {change.position: change for change in series.changes}
    names = (series.model, series.method, series.engine, series.metric, series.where, "; ".join(series.apart))
    for position, point in enumerate(series.points):
        change = changes.get(position)
        line: Line = [*names, series.unit, series.direction, point.session, point.started_at, point.value, point.n]
        if change is None:
            yield [*line, None, None, None, None]
            continue
        around = "; ".join(f"{each.what}: {each.base} → {each.head}" for each in change.environment)
        yield [*line, change.size, series.relative, change.matters, around]
