"""The columns on how a variant runs: speeds at every grid point, and peaks of memory."""

from __future__ import annotations

from collections.abc import Callable

from harness.analysis.table import GridPoint, Speed, Table, VariantRow
from harness.report.column import Column, Value
from harness.report.formats import BINARY, size_unit


def all_speed_columns(table: Table) -> tuple[Column, ...]:
    return tuple(each for point in table.grid for each in speed_columns(point, headline=point == table.grid[0]))


def speed_columns(point: GridPoint, headline: bool) -> tuple[Column, ...]:
    """Prefill and decode at one grid point; only the headline's are shown in the main table."""
    where = f"b{point.batch_size}_p{point.prompt_tokens}_n{point.new_tokens}_{point.decode_mode}"
    said = f"At {point.label}. Median over processes, with their range"
    return (
        Column(
            f"prefill_tok_per_s_{where}",
            "Speed",
            "Prefill",
            "tok/s",
            f"{said}.",
            _speed(point, lambda speed: speed.prefill_tok_per_s),
            shown=headline,
            interval=True,
        ),
        Column(
            f"prefill_ratio_{where}",
            "Speed",
            "vs baseline",
            "×",
            f"{said}; multiple of the baseline's prefill of the same session.",
            _speed(point, lambda speed: speed.prefill_ratio),
            shown=False,
            interval=True,
        ),
        Column(
            f"decode_tok_per_s_{where}",
            "Speed",
            "Decode",
            "tok/s",
            f"{said}.",
            _speed(point, lambda speed: speed.decode_tok_per_s),
            shown=headline,
            interval=True,
        ),
        Column(
            f"decode_ratio_{where}",
            "Speed",
            "Decode vs baseline",
            "×",
            f"{said}; multiple of the baseline's decoding of the same session.",
            _speed(point, lambda speed: speed.decode_ratio),
            shown=headline,
            interval=True,
        ),
    )


def peak_columns(table: Table) -> tuple[Column, ...]:
    unit = size_unit((peak.bytes for row in table.rows for peak in row.peaks), BINARY)
    keys = dict.fromkeys((peak.run, peak.phase, peak.source) for row in table.rows for peak in row.peaks)
    run = "performance" if any(kind == "performance" for kind, _, _ in keys) else "quality"
    device = any(source == "cuda allocated" for kind, _, source in keys if kind == run)
    source = "cuda allocated" if device else next((name for kind, _, name in keys if kind == run), "")
    what = "GPU memory allocated" if device else "resident memory"
    shown = f"Peak of {what} in the {run} run. 1 {unit.name} is {unit.bytes:,} bytes."
    return (
        Column(
            f"peak_loading_{run}_bytes",
            "Peak memory",
            "loading",
            unit.name,
            f"{shown} While loading.",
            lambda row: _highest(row, run, source, loading=True),
            factor=1 / unit.bytes,
        ),
        Column(
            f"peak_running_{run}_bytes",
            "Peak memory",
            "running",
            unit.name,
            f"{shown} After loading.",
            lambda row: _highest(row, run, source, loading=False),
            factor=1 / unit.bytes,
        ),
        *(
            Column(
                f"peak_{kind}_{phase}_{origin.replace(' ', '_')}_bytes",
                "Peak memory",
                f"{kind}, {phase}",
                unit.name,
                f"{origin}.",
                _peak(kind, phase, origin),
                factor=1 / unit.bytes,
                shown=False,
            )
            for kind, phase, origin in keys
        ),
    )


def _speed(point: GridPoint, pick: Callable[[Speed], Value]) -> Callable[[VariantRow], Value]:
    return lambda row: pick(speed) if (speed := row.speed_at(point)) else None


def _peak(run: str, phase: str, source: str) -> Callable[[VariantRow], Value]:
    return lambda row: next(
        (peak.bytes for peak in row.peaks if (peak.run, peak.phase, peak.source) == (run, phase, source)),
        None,
    )


def _highest(row: VariantRow, run: str, source: str, loading: bool) -> int | None:
    return max(
        (
            peak.bytes
            for peak in row.peaks
            if (peak.run, peak.source) == (run, source) and ("load" in peak.phase) == loading
        ),
        default=None,
    )
