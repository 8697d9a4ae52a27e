"""``harness.write_report`` and other ways to publish a results folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api.locations import name_of, read_location
from harness.api.results import NamedRecords, kept_answer, read_folder
from harness.core.exact_text import as_text
from harness.core.record import Damaged, RunRecord
from harness.report.write import report_files, write_files
from harness.report.write import write_report as write
from harness.storage.reading import all_records
from harness.storage.summaries import REPORT

if TYPE_CHECKING:
    from harness.report.renderers.mlflow_export import Exported

DEFAULT_FORMATS = ("html", "md", "csv")
MANY = 1_000
"""Records of which the last report is kept. That of fewer takes a second or two, and its page has megabytes."""


def write_report(
    records: Sequence[RunRecord] | str | Path,
    out: str | Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    job_summary: str | Path | None = None,
    redact: bool = False,
) -> list[Path]:
    """Writes the report of records, or of a results folder, into the folder ``out``; returns the files' paths.

    The format ``github`` is appended to the file ``job_summary`` instead, if given. With ``redact`` the report
    leaves out paths, logs, messages and names of local models and texts, and says so.
    Raises UsageError, before writing anything, for an unknown format or images that cannot be drawn here, and
    ResultsError if no record in the folder can be read. Damaged ones are named in the report.
    """
    summary = Path(job_summary) if job_summary is not None else None
    if not isinstance(records, str | Path):
        return write(records, Path(out), formats, summary, redact=redact)
    return _write(read_folder(records), lambda recipe: Path(out), formats, summary, redact)


def write_folder_report(
    results: str | Path,
    reports: Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    job_summary: Path | None = None,
    on_damage: Callable[[Damaged], None] = lambda damaged: None,
    redact: bool = False,
) -> list[Path]:
    """Writes the report of a results folder below ``reports``, in a folder named after its recipe.

    If it holds several recipes, the report is named after the results folder. ``on_damage`` receives each damaged
    attempt, which the report names too. Raises what ``write_report`` raises.
    """
    found = read_folder(results)
    for each in found.damaged:
        on_damage(each)
    return _write(found, lambda recipe: reports / (recipe or name_of(results)), formats, job_summary, redact)


def _write(
    found: NamedRecords,
    out: Callable[[str | None], Path],
    formats: Sequence[str],
    job_summary: Path | None,
    redact: bool,
) -> list[Path]:
    """Writes the report into the folder that ``out`` returns for its recipe, if all records have the same."""
    if len(found.records) >= MANY and set(formats) <= set(DEFAULT_FORMATS):
        kept = _kept(found, formats, redact)
        return write_files(out(kept.recipe), ((name, text.encode()) for name, text in kept.files))
    with found.summaries() as derived:
        return write(found.records, out(_recipe(found)), formats, job_summary, found.damaged, redact, derived)


@dataclass(frozen=True)
class _KeptReport:
    """The files of a report, by their paths in its folder; its recipe, if all records have the same."""

    recipe: str | None
    files: tuple[tuple[str, str], ...]


def _kept(found: NamedRecords, formats: Sequence[str], redact: bool) -> _KeptReport:
    """The report of all records, or the same as it was kept."""
    about = as_text([list(formats), redact, list(map(repr, found.damaged))])
    return kept_answer([found], REPORT, about, _KeptReport, lambda: _made(found, formats, redact))


def _made(found: NamedRecords, formats: Sequence[str], redact: bool) -> _KeptReport:
    with found.summaries() as derived:
        files = report_files(found.records, formats, found.damaged, redact, derived)
        return _KeptReport(_recipe(found), tuple((name, content.decode()) for name, content in files))


def _recipe(found: NamedRecords) -> str | None:
    names = {record.spec.recipe for record in found.records}
    return names.pop() if len(names) == 1 else None


def export_to_mlflow(results: str | Path, tracking_uri: str, experiment: str) -> list[Exported]:
    """Logs the sessions of a results folder that the experiment does not hold yet.

    Raises ResultsError for a damaged record: its session would be logged without it, and never again.
    """
    from harness.report.renderers.mlflow_export import export

    return list(export(all_records(read_location(results)), tracking_uri, experiment))
