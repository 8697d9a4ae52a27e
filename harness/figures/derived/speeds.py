"""Speeds of a variant, absolute and relative to the baseline's and the control's of the same session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.core.record import Measurement, RunRecord
from harness.figures.table import GridPoint, Outliers, Speed
from harness.stats.estimate import Estimate
from harness.stats.timing import Timings, ratio, speed

METRICS = ("prefill_s", "decode_step_s")


def speeds(
    records: Sequence[RunRecord], baseline: Sequence[RunRecord], control: Sequence[RunRecord] = ()
) -> tuple[Speed, ...]:
    """One Speed per grid point, in measurement order.

    ``records`` are a variant's performance runs of one session, each a separate process; ``baseline`` and ``control``
    those of the baseline and of the control in the same session (empty: no ratios).
    """
    return tuple(_speed(records, baseline, control, point) for point in _points(records))


def _speed(
    records: Sequence[RunRecord], baseline: Sequence[RunRecord], control: Sequence[RunRecord], point: GridPoint
) -> Speed:
    prefill, decode = (_timings(records, metric, point) for metric in METRICS)
    base_prefill, base_decode = (_timings(baseline, metric, point) for metric in METRICS)
    own_prefill, own_decode = (_timings(control, metric, point) for metric in METRICS)
    return Speed(
        point,
        speed(prefill, point.batch_size * point.prompt_tokens) if prefill else None,
        speed(decode, point.batch_size) if decode else None,
        _ratio(prefill, base_prefill),
        _ratio(decode, base_decode),
        _outliers(prefill),
        _outliers(decode),
        _ratio(prefill, own_prefill),
        _ratio(decode, own_decode),
    )


def _points(records: Iterable[RunRecord]) -> tuple[GridPoint, ...]:
    timings = (entry for record in records for entry in record.outcome.measurements)
    return tuple(dict.fromkeys(point_of(entry) for entry in timings if entry.metric in METRICS))


def point_of(measured: Measurement) -> GridPoint:
    """The point of the grid that a figure belongs to."""
    protocol = measured.protocol
    return GridPoint(
        int(protocol["batch_size"] or 0),
        int(protocol["prompt_tokens"] or 0),
        int(protocol.get("new_tokens") or 0),
    )


def _timings(records: Iterable[RunRecord], metric: str, point: GridPoint) -> list[Timings]:
    """What each process timed at this point."""
    return [timings for record in records for timings in _timed(record, metric).get(point, ())]


def _timed(record: RunRecord, metric: str) -> dict[GridPoint, list[Timings]]:
    return record.outcome.remember(("timings", metric), lambda: _by_point(record, metric))


def _by_point(record: RunRecord, metric: str) -> dict[GridPoint, list[Timings]]:
    found: dict[GridPoint, list[Timings]] = {}
    for entry in record.outcome.measured(metric):
        if entry.values:
            iterations = entry.cluster_ids or tuple(map(str, range(len(entry.values))))
            found.setdefault(point_of(entry), []).append(Timings(record.spec.repetition, entry.values, iterations))
    return found


def _ratio(ours: Sequence[Timings], theirs: Sequence[Timings]) -> Estimate | None:
    return ratio(ours, theirs) if ours and theirs else None


def _outliers(processes: Sequence[Timings]) -> Outliers | None:
    if not processes:
        return None
    return Outliers(sum(each.outliers for each in processes), sum(len(each.seconds) for each in processes))
