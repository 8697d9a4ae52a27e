"""Writes a report in the requested formats, each file completely or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import StorageError, UsageError, reason_of, refuse_unknown
from harness.storage.disk import Disk

if TYPE_CHECKING:
    from harness.analysis.summaries import Summaries
    from harness.core.record import Damaged, RunRecord
    from harness.report.page import Page

Files = Iterable[tuple[str, bytes]]
"""Each file's path in the report's folder, and its content."""
_FilesByFormat = dict[str, list[tuple[str, bytes]]]


def _html(page: Page) -> Files:
    from harness.report.renderers.html import html

    yield "report.html", html(page).encode()


def _markdown(page: Page) -> Files:
    from harness.report.renderers.markdown import markdown

    yield "report.md", markdown(page).encode()


def _csv(page: Page) -> Files:
    from harness.report.renderers.csv_file import csv_text

    yield "report.csv", csv_text(page.tables).encode()


def _parquet(page: Page) -> Files:
    from harness.report.renderers.parquet_file import parquet_bytes

    yield "report.parquet", parquet_bytes(page.tables)


def _images(page: Page, suffix: str) -> Files:
    from harness.report.plots import plots_of
    from harness.report.plots.images import images

    found = [(number, plot) for number, table in enumerate(page.tables, 1) for plot in plots_of(table)]
    drawn = images([plot for _, plot in found], suffix)
    for (number, plot), content in zip(found, drawn, strict=True):
        table = f"{number}-" if len(page.tables) > 1 else ""
        yield f"figures/{table}{plot.name}.{suffix}", content


def _model_cards(page: Page) -> Files:
    from harness.report.renderers.model_card import model_cards

    for name, text in model_cards(page.tables):
        yield f"model-card/{name}", text.encode()


def _github(page: Page) -> Files:
    from harness.report.summary import job_summary

    yield "summary.md", job_summary(page).encode()


FORMATS: Mapping[str, Callable[[Page], Files]] = {
    "html": _html,
    "md": _markdown,
    "csv": _csv,
    "parquet": _parquet,
    "png": lambda page: _images(page, "png"),
    "svg": lambda page: _images(page, "svg"),
    "model-card": _model_cards,
    "github": _github,
}
"""The renderer of each format, imported on first use."""


def write_report(
    records: Sequence[RunRecord],
    out: Path,
    formats: Sequence[str] = ("html", "md", "csv"),
    job_summary: Path | None = None,
    damaged: Sequence[Damaged] = (),
    redact: bool = False,
    summaries: Summaries | None = None,
) -> list[Path]:
    """Writes the report into the folder ``out`` (``report.html``, ``figures/…`` and so on); returns the files' paths.

    The format ``github`` is appended to the file ``job_summary`` instead, if one is given. ``damaged`` attempts are
    named in the report. Rows among the ``summaries`` are not derived again. With ``redact`` it leaves out what
    identifies the user and the machine: see ``redact.LEFT_OUT``.
    Raises UsageError, before anything is written, for an unknown format and for images that cannot be drawn here.
    """
    for name in formats:
        if name not in FORMATS:
            refuse_unknown("report format", name, FORMATS)
    from harness.report.page import page

    whole = page(records, damaged, redact, summaries)
    inside = [name for name in formats if name != "github" or job_summary is None]
    written = write_files(out, _rendered(whole, inside))
    if "github" in formats and job_summary is not None:
        _append_summary(whole, job_summary)
        written.append(job_summary)
    return written


def report_files(
    records: Sequence[RunRecord],
    formats: Sequence[str],
    damaged: Sequence[Damaged] = (),
    redact: bool = False,
    summaries: Summaries | None = None,
) -> list[tuple[str, bytes]]:
    """The files that ``write_report`` would write, by their paths in its folder."""
    from harness.report.page import page

    return _rendered(page(records, damaged, redact, summaries), formats)


def write_files(out: Path, files: Files) -> list[Path]:
    """Writes each file into the folder ``out``; returns their paths."""
    written = []
    for name, content in files:
        path = out / name
        write_file(path, content)
        written.append(path)
    return written


def _rendered(page: Page, formats: Sequence[str]) -> list[tuple[str, bytes]]:
    found = _rendered_apart(page, formats) if "html" in formats and page.is_long else _files(page, formats)
    return [file for name in formats for file in found[name]]


def _rendered_apart(page: Page, formats: Sequence[str]) -> _FilesByFormat:
    """CSV and Markdown in processes of their own beside the page's.

    CSV shows no text of a cell and no answer, so it begins first. Markdown begins when this process has derived what it
    shows as the page does.
    """
    here = [name for name in formats if name not in ("csv", "md")]

    def page_and_markdown() -> _FilesByFormat:
        from harness.report.column import cells, shown_columns

        tuple(page.answers)
        for table in page.tables:
            for column in shown_columns(table):
                cells(table, column)
        return _beside(page, "md", formats, lambda: _files(page, here))

    return _beside(page, "csv", formats, page_and_markdown)


def _beside(page: Page, name: str, formats: Sequence[str], others: Callable[[], _FilesByFormat]) -> _FilesByFormat:
    """The files of the ``others``, and beside them those of the format with this name, if it is among the formats."""
    from harness.report.side_by_side import side_by_side

    if name not in formats:
        return others()
    mine, theirs = side_by_side(others, lambda: _files(page, [name]))
    return mine | theirs


def _files(page: Page, formats: Sequence[str]) -> _FilesByFormat:
    return {name: list(FORMATS[name](page)) for name in formats}


def _append_summary(page: Page, path: Path) -> None:
    """Appends, since other steps of the job write there too."""
    from harness.report import summary

    try:
        used = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            file.write(summary.job_summary(page, used).encode())
    except OSError as error:
        raise UsageError(f"{path}: cannot write the job summary: {reason_of(error)}") from None


def write_file(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, never part of one. Creates the folder if it is missing.

    Raises StorageError if it cannot be written.
    """
    try:
        Disk().write_whole(path, content)
    except OSError as error:
        raise StorageError(f"{path}: cannot write the file: {reason_of(error)}") from None
