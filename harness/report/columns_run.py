"""The columns on how fast a variant runs, at every grid point; what that takes in joules and costs in money."""

from __future__ import annotations

from collections.abc import Callable

from harness.core.run import Price
from harness.figures.derived.energies import per_million_tokens
from harness.figures.table import Energy, GridPoint, Outliers, Speed, Table, VariantRow
from harness.report.column import Column, Value, interval_note
from harness.stats.estimate import Estimate

COUNTED = {"NVML": "the GPU's counter", "RAPL": "the counters of CPU and memory"}
"""Whose joules they are."""


def all_speed_columns(table: Table) -> tuple[Column, ...]:
    return tuple(each for point in table.grid for each in speed_columns(point, headline=point == table.grid[0]))


def speed_columns(point: GridPoint, headline: bool) -> tuple[Column, ...]:
    """Prefill and decode at one grid point; only the headline's are shown in the main table."""
    where = point_name(point)
    said = (
        f"At {point.label}. Median over processes, with its 95% interval (of one process, its iterations'; of two, "
        "none)"
    )
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
            notes=_notes(point, lambda speed: speed.prefill_tok_per_s, lambda speed: speed.prefill_outliers),
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
            notes=_notes(point, lambda speed: speed.prefill_ratio),
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
            notes=_notes(point, lambda speed: speed.decode_tok_per_s, lambda speed: speed.decode_outliers),
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
            notes=_notes(point, lambda speed: speed.decode_ratio),
        ),
        _outliers(point, "prefill", lambda speed: speed.prefill_outliers),
        _outliers(point, "decode", lambda speed: speed.decode_outliers),
    )


def energy_columns(table: Table) -> tuple[Column, ...]:
    """Joules per token by each counter at every grid point; the headline's are shown, power at rest beside them."""
    keys = dict.fromkeys((each.point, each.source) for row in table.rows for each in row.energies)
    return tuple(column for key in keys for column in _energy_columns(*key, headline=key[0] == table.grid[0]))


def _energy_columns(point: GridPoint, source: str, headline: bool) -> tuple[Column, ...]:
    where = f"{source.lower()}_{point_name(point)}"
    said = f"By {COUNTED.get(source, source)}, at {point.label}"

    def one(name: str, heading: str, unit: str, text: str, pick: Callable[[Energy], Value], shown: bool) -> Column:
        def value(row: VariantRow) -> Value:
            return pick(found) if (found := row.energy_at(point, source)) else None

        help_text = f"{said}: {text}."
        return Column(f"{name}_{where}", "Energy", heading, unit, help_text, value, shown=shown, interval=True)

    off, whole = "the power at rest taken off", "the power at rest included"
    return (
        one("prefill_j_per_tok", f"Prefill, {source}", "J/tok", off, lambda each: each.prefill_j_per_tok, headline),
        one("decode_j_per_tok", f"Decode, {source}", "J/tok", off, lambda each: each.decode_j_per_tok, headline),
        one("idle_power_w", f"At rest, {source}", "W", "power at rest", lambda each: each.idle_power_w, headline),
        one("prefill_with_idle_j_per_tok", "", "J/tok", whole, lambda each: each.prefill_with_idle_j_per_tok, False),
        one("decode_with_idle_j_per_tok", "", "J/tok", whole, lambda each: each.decode_with_idle_j_per_tok, False),
    )


def price_columns(table: Table) -> tuple[Column, ...]:
    """What a million tokens cost at the recipe's price; none where it names none."""
    price = table.price
    if price is None:
        return ()
    return tuple(column for point in table.grid for column in _price_columns(point, price, point == table.grid[0]))


def _price_columns(point: GridPoint, price: Price, headline: bool) -> tuple[Column, ...]:
    said = f"At {price.per_hour:g} {price.currency} per hour and the speed at {point.label}. With the speed's interval"

    def one(phase: str, heading: str, pick: Callable[[Speed], Estimate | None]) -> Column:
        def value(row: VariantRow) -> Value:
            found = row.speed_at(point)
            speed = pick(found) if found else None
            return per_million_tokens(speed, price.per_hour) if speed else None

        name = f"{phase}_{price.currency.lower()}_per_million_tok_{point_name(point)}"
        unit = f"{price.currency}/10⁶ tok"
        notes = _notes(point, pick)
        return Column(
            name, "Cost of tokens", heading, unit, f"{said}.", value, shown=headline, interval=True, notes=notes
        )

    return (
        one("prefill", "Prefill", lambda speed: speed.prefill_tok_per_s),
        one("decode", "Decode", lambda speed: speed.decode_tok_per_s),
    )


def point_name(point: GridPoint) -> str:
    """A grid point as part of a column's name."""
    return f"b{point.batch_size}_p{point.prompt_tokens}_n{point.new_tokens}"


def _speed(point: GridPoint, pick: Callable[[Speed], Value]) -> Callable[[VariantRow], Value]:
    return lambda row: pick(speed) if (speed := row.speed_at(point)) else None


def _outliers(point: GridPoint, phase: str, pick: Callable[[Speed], Outliers | None]) -> Column:
    said = f"At {point.label}: timings beyond Tukey's far fences of their process. None is left out."
    name = f"{phase}_outliers_{point_name(point)}"
    return Column(name, "Speed", "", "", said, _speed(point, lambda speed: _count(pick(speed))), shown=False)


def _count(found: Outliers | None) -> int | None:
    return found.count if found else None


def _notes(
    point: GridPoint,
    pick: Callable[[Speed], Estimate | None],
    far_out: Callable[[Speed], Outliers | None] = lambda speed: None,
) -> Callable[[VariantRow], tuple[str, ...]]:
    """That an interval is of one process or that there is none, and how many timings lie far out."""

    def notes(row: VariantRow) -> tuple[str, ...]:
        speed = row.speed_at(point)
        found, far = (pick(speed), far_out(speed)) if speed else (None, None)
        alone = interval_note(found)
        return (*alone, f"{far.count} of {far.timings} timings far out") if far and far.count else alone

    return notes
