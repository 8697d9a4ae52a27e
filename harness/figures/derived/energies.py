"""What tokens cost: money from the price per hour and the speed, and the joules that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.core.record import Measurement, RunRecord
from harness.figures.derived.speeds import point_of
from harness.figures.table import EnergyUse, GridPoint
from harness.stats.estimate import Estimate, with_range
from harness.stats.repeats import of_process, over_processes

MILLION = 1_000_000
SECONDS_PER_HOUR = 3600
METRICS = ("prefill_j_per_tok", "decode_j_per_tok")


def per_million_tokens(speed_tok_per_s: Estimate, per_hour: float) -> Estimate:
    """The cost of a million tokens at a price per hour: 10⁶ · price / (3600 · speed).

    The interval is the speed's with its ends swapped: the fastest process makes the cheapest tokens.
    """

    def cost(speed: float) -> float:
        return MILLION * per_hour / (SECONDS_PER_HOUR * speed)

    low, high = speed_tok_per_s.low, speed_tok_per_s.high
    return replace(
        speed_tok_per_s,
        value=cost(speed_tok_per_s.value),
        low=None if high is None else cost(high),
        high=None if low is None else cost(low),
    )


def energies(records: Sequence[RunRecord]) -> tuple[EnergyUse, ...]:
    """Energy at each point of the grid by each counter, in measurement order: medians over processes."""
    counted = [m for record in records for m in record.outcome.measurements if m.metric in METRICS and m.values]
    keys = dict.fromkeys((point_of(m), str(m.protocol["source"])) for m in counted)
    return tuple(_energy(records, point, source) for point, source in keys)


def _energy(records: Sequence[RunRecord], point: GridPoint, source: str) -> EnergyUse:
    def found(metric: str, idle: str | None = None) -> Estimate | None:
        return _across(
            m
            for record in records
            for m in record.outcome.measured(metric)
            if m.protocol.get("source") == source
            and (idle is None or m.protocol.get("idle") == idle)
            and point_of(m) == point
        )

    return EnergyUse(
        point,
        source,
        prefill_j_per_tok=found("prefill_j_per_tok", idle="subtracted"),
        decode_j_per_tok=found("decode_j_per_tok", idle="subtracted"),
        prefill_with_idle_j_per_tok=found("prefill_j_per_tok", idle="included"),
        decode_with_idle_j_per_tok=found("decode_j_per_tok", idle="included"),
        idle_power_w=found("idle_power_w"),
    )


def _across(measured: Iterable[Measurement]) -> Estimate | None:
    """The median over processes with their range; None if nothing was measured."""
    figures = [of_process(each.values) for each in measured if each.values]
    if not figures:
        return None
    return with_range(over_processes(figures), figures)
