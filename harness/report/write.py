"""Writes a report in the formats asked for, each file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import refuse_unknown
from harness.record import RunRecord

if TYPE_CHECKING:
    from harness.report.page import Page


def _html(page: Page) -> str:
    from harness.report.html import html

    return html(page)


def _markdown(page: Page) -> str:
    from harness.report.markdown import markdown

    return markdown(page)


def _csv(page: Page) -> str:
    from harness.report.csv_file import csv_text

    return csv_text(page.tables)


FORMATS: Mapping[str, Callable[[Page], str]] = {"html": _html, "md": _markdown, "csv": _csv}
"""From a format, which is also its file's suffix, to what renders it. Each renderer is imported when used."""


def write_report(records: Sequence[RunRecord], out: Path, formats: Sequence[str] = ("html", "md", "csv")) -> list[Path]:
    """Writes ``report.html``, ``report.md`` and ``report.csv`` into the folder ``out``; returns their paths.

    Raises UsageError for an unknown format, before anything is written.
    """
    for name in formats:
        if name not in FORMATS:
            refuse_unknown("report format", name, FORMATS)
    from harness.report.page import page

    whole = page(records)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        path = out / f"report.{name}"
        _write_whole(path, FORMATS[name](whole))
        written.append(path)
    return written


def _write_whole(path: Path, text: str) -> None:
    """A reader finds the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
