"""Finds the records that a user names: of a folder, session, run or baseline; and ``harness.load_results``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.baselines import Baselines
from harness.api.locations import read_location
from harness.core.job import VariantJob
from harness.core.record import Damaged, Measurement, RunRecord
from harness.errors import ResultsError, UsageError
from harness.report.redact import Redaction
from harness.storage.anonymizer import Anonymizer
from harness.storage.objects import is_url

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class NamedRecords:
    """The records that a name refers to; ``damaged`` are the attempts that are not as they were written."""

    name: str
    records: tuple[RunRecord, ...]
    damaged: tuple[Damaged, ...]


def read_named(word: str, results: str | Path, baselines: Path) -> NamedRecords:
    """The records of a baseline, of a results folder, or of a session or run: the first of these that ``word`` names.

    Raises UsageError if it names none of them.
    """
    kept = Baselines(baselines)
    if word in kept:
        baseline = kept.read(word)
        return _named(f"baseline {word}", baseline.records, baseline.damaged)
    folder, at, wanted = word.rpartition("@")
    if is_url(word) and "/" in wanted:  # the @ is a part of the URL
        folder, at, wanted = "", "", word
    if Path(word).exists() or (is_url(word) and not at):
        return read_folder(word)
    root = folder if at else results
    if at or is_url(root) or Path(root).is_dir():
        return _read_part(word, root, wanted)
    raise UsageError(
        f"{word}: neither a results folder nor a baseline in {baselines}, and there is no folder {results}"
    )


def read_folder(folder: str | Path, wanted: str | None = None) -> NamedRecords:
    """The records of a results folder, or those of one session or run in it."""
    if wanted:
        return _read_part(f"{folder}@{wanted}", folder, wanted)
    found = read_location(folder)
    return _named(str(folder), found.records, found.damaged)


def _read_part(word: str, folder: str | Path, wanted: str) -> NamedRecords:
    """The records of one session or one run, by its id or a unique prefix of it."""
    found = read_location(folder)
    records = found.records
    ids = {record.session for record in records} | {record.spec.run_id for record in records}
    matches = [wanted] if wanted in ids else sorted(each for each in ids if wanted and each.startswith(wanted))
    if len(matches) > 1:
        shown = ", ".join(matches[:4])
        raise UsageError(f"{word}: {len(matches)} sessions and runs in {folder} begin with {wanted}: {shown}")
    if not matches:
        sessions = ", ".join(sorted({record.session for record in records})[-4:])
        raise ResultsError(
            f"{word}: neither a folder, a baseline, nor a session or run in {folder}; sessions: {sessions}"
        )
    chosen = tuple(record for record in records if matches[0] in (record.session, record.spec.run_id))
    return _named(f"{folder}@{matches[0]}", chosen, found.damaged)


def _named(name: str, records: tuple[RunRecord, ...], damaged: tuple[Damaged, ...]) -> NamedRecords:
    """As comparisons and histories show them: they are published, so they do not name the user."""
    anonymizer = Anonymizer.for_terminals()
    return NamedRecords(anonymizer.path(name), records, tuple(map(anonymizer.damaged, damaged)))


def redacted(sides: Sequence[NamedRecords]) -> list[NamedRecords]:
    """The same without what ``harness.report.redact`` leaves out; equal names get equal numbers on all sides."""
    redaction = Redaction()
    return [
        NamedRecords(
            redaction.name("results", side.name),
            redaction.records(side.records),
            tuple(map(redaction.damaged, side.damaged)),
        )
        for side in sides
    ]


def load_results(path: str | Path) -> pd.DataFrame:
    """One row per measurement of every attempt.

    ``value`` is the mean of the raw values (weighted if they have weights), and ``values`` holds them all. A run that
    measured nothing has one row with its status and no metric.
    Warns of damaged records, which have no rows. Raises ResultsError if the folder holds no readable record.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    found = read_location(path)
    for each in found.damaged:
        warnings.warn(each.remark, stacklevel=2)
    for record in found.records:
        spec = record.spec
        run = {
            "recipe": spec.recipe,
            "case_id": spec.case_id,
            "variant": spec.variant.key if isinstance(spec.job, VariantJob) else None,
            **spec.names(),
            "attempt": record.attempt,
            "session": record.session,
            "started_at": record.started_at,
            "status": record.status,
            "failure": record.outcome.failure.message if record.outcome.failure else None,
        }
        measured = [
            {
                "metric": m.metric,
                "unit": m.unit,
                "direction": m.direction,
                "evidence": m.evidence,
                "value": _mean(m),
                "n": len(m.values),
                "values": m.values,
                "item_ids": m.item_ids,
                "protocol": dict(m.protocol),
            }
            for m in record.outcome.measurements
        ]
        rows += [{**run, **row} for row in measured or [{"metric": None}]]
    return pd.DataFrame(rows)


def _mean(measurement: Measurement) -> float:
    weights = measurement.weights or (1.0,) * len(measurement.values)
    return sum(v * w for v, w in zip(measurement.values, weights, strict=True)) / sum(weights)
