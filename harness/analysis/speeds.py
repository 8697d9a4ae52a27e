"""Speeds of a variant, and beside the baseline's of the same session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.analysis.stats import Estimate, ratio, speed
from harness.analysis.table import GridPoint, Speed
from harness.record import Measurement, RunRecord


@dataclass(frozen=True)
class _Rates:
    prefill: Estimate | None
    decode: Estimate | None


def speeds(records: Sequence[RunRecord], baseline: Sequence[RunRecord]) -> tuple[Speed, ...]:
    """One Speed per grid point, in the order measured.

    ``records`` are a variant's performance runs of one session, each a process of its own, and
    ``baseline`` those of the baseline in the same session (empty: no ratios).
    """
    theirs = {point: _rates(baseline, point) for point in _points(baseline)}
    found = []
    for point in _points(records):
        rates, base = _rates(records, point), theirs.get(point, _Rates(None, None))
        found.append(
            Speed(
                point,
                rates.prefill,
                rates.decode,
                _ratio(rates.prefill, base.prefill),
                _ratio(rates.decode, base.decode),
            )
        )
    return tuple(found)


def _points(records: Iterable[RunRecord]) -> tuple[GridPoint, ...]:
    timings = (entry for record in records for entry in record.outcome.measurements)
    return tuple(dict.fromkeys(point_of(entry) for entry in timings if entry.metric in ("prefill_s", "decode_step_s")))


def point_of(measured: Measurement) -> GridPoint:
    """The point of the grid that a figure belongs to."""
    protocol = measured.protocol
    return GridPoint(
        int(protocol["batch_size"] or 0),
        int(protocol["prompt_tokens"] or 0),
        int(protocol.get("new_tokens") or 0),
    )


def _rates(records: Sequence[RunRecord], point: GridPoint) -> _Rates:
    prefill = _timings(records, "prefill_s", point)
    decode = _timings(records, "decode_step_s", point)
    return _Rates(
        speed(prefill, point.batch_size * point.prompt_tokens) if prefill else None,
        speed(decode, point.batch_size) if decode else None,
    )


def _timings(records: Iterable[RunRecord], metric: str, point: GridPoint) -> list[tuple[float, ...]]:
    """The seconds of each process that timed this point."""
    return [
        entry.values
        for record in records
        for entry in record.outcome.measurements
        if entry.metric == metric and entry.values and point_of(entry) == point
    ]


def _ratio(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    return ratio(one, other) if one and other else None
