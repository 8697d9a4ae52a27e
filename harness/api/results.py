"""``harness.load_results``: the measurements of a results folder as a data frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.job import VariantJob
from harness.core.record import Measurement
from harness.storage.store import read_records

if TYPE_CHECKING:
    import pandas as pd


def load_results(path: str | Path) -> pd.DataFrame:
    """One row per measurement of every attempt.

    ``value`` is the mean of the raw values (by weight where they have weights), ``values`` holds them all, and
    a run that measured nothing has one row with its status and no metric.
    Raises ResultsError where the folder holds no records.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for record in read_records(Path(path)):
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
