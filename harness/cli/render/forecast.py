"""Forecasts in words: of a run, of a sweep, and what they rest on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.record import Forecast
from harness.core.run import HourlyPrice
from harness.figures.formats import DECIMAL, duration, significant, size_unit
from harness.planning.forecast.forecast import RunForecast, Span, SweepForecast

if TYPE_CHECKING:
    from harness.api.plan import PlanState
    from harness.execution.events import Forecasted

BASES = {
    "same": "earlier runs of the same case",
    "alike": "earlier runs of their kind",
    "arithmetic": "arithmetic alone",
}
"""What a run's forecast rests on: see ``harness.core.record.Forecast``."""
NAMED = 3
"""Of the runs that may take too long, so many are named."""


def about(time: Forecast) -> str:
    """``12 s (8.0–19)``."""
    return about_s(Span(time.expected_s, time.low_s, time.high_s))


def about_s(time: Span) -> str:
    """Seconds, with their range in the same unit: ``14 min (10–20)``."""
    unit, name = (1.0, "s") if time.expected < 60 else (60.0, "min") if time.expected < 3600 else (3600.0, "h")
    expected, low, high = (significant(each / unit, 2) for each in (time.expected, time.low, time.high))
    return f"{expected} {name} ({low}–{high})"


def forecast_lines(state: PlanState) -> Iterator[str]:
    """Time, disk and money of what is left, and what that rests on; nothing if nothing is left."""
    forecast = state.forecast
    if not forecast.runs:
        return
    yield f"expected: {expected_words(forecast)}"
    yield from too_long_lines(forecast)
    based = [f"{count} on {BASES[basis]}" for basis, count in sorted(forecast.bases.items(), reverse=True)]
    here = ""
    if state.speeds is not None:
        bandwidth = significant(state.speeds.bandwidth_byte_per_s / 1e9, 2)
        rate = significant(state.speeds.rate("float32") / 1e9, 2)
        who = "this machine" if state.nodes[0].name == "" else "the first node"
        here = f"; {who} copies {bandwidth} GB/s and does {rate}·10⁹ operations per second in float32"
    yield f"  ranges hold four of five; of {len(forecast.runs)} runs {', '.join(based)}{here}"


def expected_words(forecast: SweepForecast) -> str:
    """``14 min (10–20), 1.2 GB on disk, 0.047 USD (0.033–0.067)``."""
    parts = [about_s(forecast.total_s), f"{bytes_words(forecast.disk_bytes)} on disk"]
    if forecast.price is not None and forecast.cost is not None:
        cost = forecast.cost
        expected, low, high = (significant(each, 2) for each in (cost.expected, cost.low, cost.high))
        parts.append(f"{expected} {forecast.price.currency} ({low}–{high})")
    return ", ".join(parts)


def too_long_lines(forecast: SweepForecast) -> Iterator[str]:
    """Which runs may take longer than the time limit of a run, and what happens if the machines are there for a
    shorter time than the sweep takes; nothing if all is well."""
    outlasting = [run for run in forecast.runs.values() if run.outlasts_its_limit]
    surely = [run for run in outlasting if run.surely_outlasts_its_limit]
    if surely:
        yield f"  even by the low end of the range longer than limits.time{_named(surely)}; {_advice(surely)}"
    if likely := [run for run in outlasting if not run.surely_outlasts_its_limit]:
        yield f"  probably longer than limits.time{_named(likely)}; {_advice(likely)}"
    if forecast.lent_s is not None and forecast.outlasts_its_machines:
        yield (
            f"  longer than the nodes are there: their jobs end in {duration(forecast.lent_s)}, and what is left then "
            "is recorded as failed; give them more by --slurm time=… or --nodes, or give the command again afterwards: "
            "it goes on"
        )


def _named(runs: Sequence[RunForecast]) -> str:
    """Their limit, the first runs with their times, and how many others there are."""
    first = ", ".join(f"{run.title} {about(run.time)}" for run in runs[:NAMED])
    more = len(runs) - NAMED
    others = f", and {more} other{'s' * (more > 1)}" if more > 0 else ""
    return f" ({duration(runs[0].limit_s or 0.0)}): {first}{others}"


def _advice(runs: Sequence[RunForecast]) -> str:
    """What to do about runs that would be ended by their time limit."""
    advice = "a run that reaches the limit is ended and recorded as timeout: raise it, or measure less in a run"
    if not any(run.is_streamed for run in runs):
        return advice
    return (
        f"{advice}; a streamed run reads its weights again for each pass, which a faster disk or more memory shortens"
    )


def bytes_words(size: int) -> str:
    """``1.2 GB``, in decimal units."""
    unit = size_unit([size], DECIMAL)
    return f"{significant(size / unit.bytes, 2)} {unit.name}"


def cost_of(time: Forecast, price: HourlyPrice) -> float:
    """What one run is expected to cost, in the price's currency."""
    return price.per_hour * time.expected_s / 3600


def forecast_and_fact(ended: Forecasted) -> str:
    """``the runs took 13 min, expected 14 min (10–20); 36 of 42 runs were within their ranges``."""
    within = f"{ended.within} of {ended.runs} runs were within their ranges"
    others = f"; not counted: {ended.others} that failed or were not made" if ended.others else ""
    return f"the runs took {duration(ended.took_s)}, expected {about_s(ended.expected_s)}; {within}{others}"


def span_entry(seconds: Span) -> dict[str, float]:
    """For programs."""
    return {"expected_s": seconds.expected, "low_s": seconds.low, "high_s": seconds.high}


def forecast_entry(run: RunForecast | None, price: HourlyPrice | None) -> dict[str, Any] | None:
    """For programs; None for a run that will not execute."""
    if run is None:
        return None
    time = run.time
    seconds = span_entry(Span(time.expected_s, time.low_s, time.high_s))
    cost = None if price is None else cost_of(time, price)
    return {**seconds, "limit_s": run.limit_s, "basis": time.basis, "disk_bytes": run.disk_bytes, "cost": cost}
