"""``harness.write_report`` and other ways to publish a results folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api.locations import name_of, read_location
from harness.api.results import read_folder
from harness.core.record import Damaged, RunRecord
from harness.report.write import write_report as write
from harness.storage.reading import all_records

if TYPE_CHECKING:
    from harness.report.renderers.mlflow_export import Exported

DEFAULT_FORMATS = ("html", "md", "csv")


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
    found = read_folder(records)
    with found.summaries() as derived:
        return write(found.records, Path(out), formats, summary, found.damaged, redact, derived)


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
    names = {record.spec.recipe for record in found.records}
    out = reports / (names.pop() if len(names) == 1 else name_of(results))
    with found.summaries() as derived:
        return write(found.records, out, formats, job_summary, found.damaged, redact, derived)


def export_to_mlflow(results: str | Path, tracking_uri: str, experiment: str) -> list[Exported]:
    """Logs the sessions of a results folder that the experiment does not hold yet.

    Raises ResultsError for a damaged record: its session would be logged without it, and never again.
    """
    from harness.report.renderers.mlflow_export import export

    return list(export(all_records(read_location(results)), tracking_uri, experiment))
