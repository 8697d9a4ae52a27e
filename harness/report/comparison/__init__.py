"""A comparison of two sets of records as text: one renderer per output format, all from the same findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.analysis.regression.findings import Regression
from harness.errors import refuse_unknown


def _terminal(found: Regression) -> str:
    from harness.report.comparison.terminal import terminal

    return terminal(found)


def _markdown(found: Regression) -> str:
    from harness.report.comparison.markdown import markdown

    return markdown(found)


def _json(found: Regression) -> str:
    from harness.report.comparison.json_text import json_text

    return json_text(found)


def _junit(found: Regression) -> str:
    from harness.report.comparison.junit import junit

    return junit(found)


FORMATS: Mapping[str, Callable[[Regression], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "json": _json,
    "junit": _junit,
}
"""The renderer of each format, imported on first use."""


def render(found: Regression, name: str = "terminal") -> str:
    """The whole comparison in one of FORMATS. Raises UsageError for an unknown one."""
    if name not in FORMATS:
        refuse_unknown("comparison format", name, FORMATS)
    return FORMATS[name](found)
