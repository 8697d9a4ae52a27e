"""Forecasts in words: of a run, of a sweep, and what they rest on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.api.plan import PlanState
from harness.core.record import Forecast
from harness.core.run import HourlyPrice
from harness.figures.formats import DECIMAL, significant, size_unit
from harness.planning.forecast.forecast import RunForecast, Span, SweepForecast

BASES = {
    "same": "earlier runs of the same case",
    "alike": "earlier runs of their kind",
    "arithmetic": "arithmetic alone",
}
"""What a run's forecast rests on: see ``harness.core.record.Forecast``."""


def about(time: Forecast | Span) -> str:
    """``12 s (8.0–19)``, ``14 min (10–20)``: the range in the unit of the mean."""
    unit, name = _unit(time.expected_s)
    expected, low, high = (significant(each / unit, 2) for each in (time.expected_s, time.low_s, time.high_s))
    return f"{expected} {name} ({low}–{high})"


def forecast_lines(state: PlanState) -> Iterator[str]:
    """Time, disk and money of what is left, and what that rests on; nothing if nothing is left."""
    forecast = state.forecast
    if not forecast.runs:
        return
    yield f"expected: {expected_words(forecast, state.price)}"
    based = [f"{count} on {BASES[basis]}" for basis, count in sorted(forecast.bases.items(), reverse=True)]
    here = ""
    if state.speeds is not None:
        bandwidth = significant(state.speeds.bandwidth_byte_per_s / 1e9, 2)
        rate = significant(state.speeds.rate("float32") / 1e9, 2)
        here = f"; this machine copies {bandwidth} GB/s and does {rate}·10⁹ operations per second in float32"
    yield f"  ranges hold four of five; of {len(forecast.runs)} runs {', '.join(based)}{here}"


def expected_words(forecast: SweepForecast, price: HourlyPrice | None) -> str:
    """``14 min (10–20), 1.2 GB on disk, 0.047 USD (0.033–0.067)``."""
    total = forecast.total
    unit = size_unit([forecast.disk_bytes], DECIMAL)
    parts = [about(total), f"{significant(forecast.disk_bytes / unit.bytes, 2)} {unit.name} on disk"]
    if price is not None:
        expected, low, high = (significant(each, 2) for each in total.cost(price))
        parts.append(f"{expected} {price.currency} ({low}–{high})")
    return ", ".join(parts)


def forecast_entry(run: RunForecast | None) -> dict[str, Any] | None:
    """For programs; None for a run that will not execute."""
    if run is None:
        return None
    time = run.time
    seconds = {"expected_s": time.expected_s, "low_s": time.low_s, "high_s": time.high_s}
    return {**seconds, "basis": time.basis, "disk_bytes": run.disk_bytes}


def _unit(seconds: float) -> tuple[float, str]:
    return (1.0, "s") if seconds < 60 else (60.0, "min") if seconds < 3600 else (3600.0, "h")
