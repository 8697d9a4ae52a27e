"""The cost of a million tokens at the recipe's price."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.core.run import HourlyPrice
from harness.figures.ask import Ask, Objective, Reading, Ties, Use, measured
from harness.figures.derived.energies import per_million_tokens
from harness.figures.figure import Figure, Note, Value, at_first_point
from harness.figures.formats import NumberStyle
from harness.figures.speed import Picked, decode_tok_per_s, prefill_tok_per_s, read_speed, speed_notes
from harness.figures.table import GridPoint, Table, VariantRow


@dataclass(frozen=True)
class Priced:
    """A point of the grid, at a price."""

    point: GridPoint
    price: HourlyPrice

    @property
    def name(self) -> str:
        return f"{self.price.currency.lower()}_per_million_tok_{self.point.name}"

    @property
    def label(self) -> str:
        return f"{self.price.per_hour:g} {self.price.currency} per hour and the speed at {self.point.label}"


def _priced(table: Table) -> tuple[Priced, ...]:
    """Empty if the recipe names no price."""
    return tuple(Priced(point, table.price) for point in table.grid) if table.price else ()


def _cost(pick: Picked) -> Callable[[VariantRow, Priced], Value]:
    def value(row: VariantRow, place: Priced) -> Value:
        found = row.speed_at(place.point)
        speed = pick(found) if found else None
        return per_million_tokens(speed, place.price.per_hour) if speed else None

    return value


def _notes(pick: Picked) -> Callable[[VariantRow, Priced], tuple[Note, ...]]:
    return lambda row, place: speed_notes(pick)(row, place.point)


def _read_decode(row: VariantRow, use: Use) -> Reading:
    if use.table.price is None:
        return Reading(None, "the recipe names no price")
    decode = read_speed(decode_tok_per_s)(row, use)
    speed = decode.estimate
    return measured(per_million_tokens(speed, use.table.price.per_hour) if speed else None, decode.basis, scale="log")


def _figure(phase: str, pick: Picked, ask: Ask | None = None) -> Figure[Priced]:
    return Figure(
        f"{phase}_cost",
        "Cost of tokens",
        phase.capitalize(),
        "At {place}. With the speed's interval.",
        _cost(pick),
        "lower",
        lambda table, place: NumberStyle(f"{place.price.currency}/10⁶ tok"),
        _priced,
        f"{phase}_{{place}}",
        at_first_point,
        interval=True,
        notes=_notes(pick),
        ask=ask,
    )


FIGURES = (
    _figure("prefill", prefill_tok_per_s),
    _figure(
        "decode",
        decode_tok_per_s,
        Ask(
            "cost",
            None,
            Objective("cost", "the cheapest tokens", "not distinguishable by cost from", rank=50),
            Ties(stands_for=("decode",)),
            _read_decode,
            format=NumberStyle("per 10⁶ tok"),
            explained=True,
        ),
    ),
)
