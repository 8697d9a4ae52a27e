"""The probability of each variant being on the Pareto front of quality, stored bytes and decode speed."""

from __future__ import annotations

from collections.abc import Sequence

from harness.figures.ask import Reading, counted, measured
from harness.figures.table import GridPoint, VariantRow
from harness.stats.draws import Sampler, draws_for
from harness.stats.pareto import Direction, front_shares


def front_probabilities(rows: Sequence[VariantRow]) -> tuple[float | None, ...]:
    """The share of draws in which no other variant beats a row; None if a figure is missing.

    Quality is the mean KL, the engine's own included, or the change of perplexity if no divergence was measured; the
    baseline has zero of both. Speed is that of decoding at the first point of the grid. An axis that was measured for
    no variant is left out; bytes are exact. Variants share the sample of the text's windows; speeds are independent.
    """
    by_kl = any(row.kl_mean for row in rows)
    point = next((speed.point for row in rows for speed in row.speeds), None)
    axes: tuple[tuple[list[Reading], Direction], ...] = (
        ([_quality(row, by_kl) for row in rows], "lower"),
        ([counted(size) if size is not None else Reading(None) for size in compared_bytes(rows)], "lower"),
        ([_decode(row, point) for row in rows], "higher"),
    )
    used = [
        (readings, direction)
        for readings, direction in axes
        if any(reading.estimate for reading, row in zip(readings, rows, strict=True) if not row.is_baseline)
    ]
    measured_by_all = [index for index in range(len(rows)) if all(readings[index].estimate for readings, _ in used)]
    if len(used) < 2 or not measured_by_all:
        return (None,) * len(rows)
    sampler = Sampler(draws_for(len(measured_by_all)))
    columns = [
        sampler.columns(
            [
                (reading.estimate, reading.influence, reading.scale)
                for reading in (readings[index] for index in measured_by_all)
                if reading.estimate
            ]
        )
        for readings, _ in used
    ]
    shares = dict(zip(measured_by_all, front_shares(columns, [direction for _, direction in used]), strict=True))
    return tuple(shares.get(index) for index in range(len(rows)))


def _quality(row: VariantRow, by_kl: bool) -> Reading:
    if row.is_reference if by_kl else row.is_baseline:
        return counted(0)
    if by_kl:
        return measured(row.kl_mean, influence=row.kl_influence)
    return measured(row.perplexity_change, influence=row.perplexity_influence, scale="log1p")


def compared_bytes(rows: Sequence[VariantRow]) -> list[int | None]:
    """The stored bytes by which rows are compared.

    A control has the baseline's weights: it is not smaller because its engine keeps fewer bytes of buffers beside them.
    """
    baseline = next((row.stored_bytes for row in rows if row.is_baseline), None) or 0
    return [
        max(row.stored_bytes, baseline) if row.is_control and row.stored_bytes is not None else row.stored_bytes
        for row in rows
    ]


def _decode(row: VariantRow, point: GridPoint | None) -> Reading:
    """Speeds of two points of the grid are never compared."""
    speed = row.speed_at(point) if point else None
    return measured(speed.decode_tok_per_s if speed else None, scale="log")
