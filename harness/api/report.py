"""``harness.write_report`` and other ways to publish a results folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.core.record import RunRecord
from harness.report.renderers.mlflow_export import Exported, export
from harness.report.write import write_report as write
from harness.storage.reading import read_records

DEFAULT_FORMATS = ("html", "md", "csv")


def write_report(
    records: Sequence[RunRecord] | str | Path,
    out: str | Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    job_summary: str | Path | None = None,
) -> list[Path]:
    """Writes the report of records, or of a results folder, into the folder ``out``; returns the files' paths.

    The format ``github`` is appended to the file ``job_summary`` instead, if given.
    Raises UsageError, before writing anything, for an unknown format or images that cannot be drawn here, and
    ResultsError if the folder holds no records.
    """
    if isinstance(records, str | Path):
        records = read_records(Path(records))
    return write(records, Path(out), formats, Path(job_summary) if job_summary is not None else None)


def write_folder_report(
    results: Path, reports: Path, formats: Sequence[str] = DEFAULT_FORMATS, job_summary: Path | None = None
) -> list[Path]:
    """Writes the report of a results folder below ``reports``, in a folder named after its recipe.

    If it holds several recipes, the report is named after the results folder. Raises what ``write_report`` raises.
    """
    records = read_records(results)
    names = {record.spec.recipe for record in records}
    return write(records, reports / (names.pop() if len(names) == 1 else results.resolve().name), formats, job_summary)


def export_to_mlflow(results: Path, tracking_uri: str, experiment: str) -> list[Exported]:
    """Logs the sessions of a results folder that the experiment does not hold yet."""
    return list(export(read_records(results), tracking_uri, experiment))
