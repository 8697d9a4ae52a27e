"""Figures over time as text: one renderer per output format, all from the same series."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from harness.analysis.history.series import History
from harness.errors import refuse_unknown


def _terminal(found: History) -> str:
    from harness.report.history.terminal import terminal

    return terminal(found)


def _markdown(found: History) -> str:
    from harness.report.history.markdown import markdown

    return markdown(found)


def _json(found: History) -> str:
    from harness.report.history.json_text import json_text

    return json_text(found)


def _csv(found: History) -> str:
    from harness.report.history.csv_text import csv_text

    return csv_text(found)


FORMATS: Mapping[str, Callable[[History], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "json": _json,
    "csv": _csv,
}
"""The renderer of each format, imported on first use."""


def render(found: History, name: str = "terminal") -> str:
    """The whole history in one of FORMATS. Raises UsageError for an unknown one."""
    if name not in FORMATS:
        refuse_unknown("history format", name, FORMATS)
    return FORMATS[name](found)


def only_changed(found: History) -> History:
    """The series that changed by more than their threshold."""
    return replace(found, series=tuple(each for each in found.series if any(one.matters for one in each.changes)))
