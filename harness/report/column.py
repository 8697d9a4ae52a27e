"""The columns of a trade-off table, derived from the figures: one for each place of a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, cast

from harness.figures.figure import Figure, Note, Place, Value
from harness.figures.formats import BLANK, NumberStyle
from harness.figures.table import Table, VariantRow
from harness.plugins import figures
from harness.stats.estimate import Estimate


@dataclass(frozen=True)
class Column:
    """A figure at one place of a table.

    ``name`` and the raw value are for programs (the unit is in the name); ``heading``, ``format`` and the formatted
    value are for readers, who see the column if it is ``shown``.
    """

    figure: Figure[Any]
    place: Place
    name: str
    heading: str
    help: str
    format: NumberStyle
    shown: bool

    @property
    def group(self) -> str:
        return self.figure.group

    @property
    def unit(self) -> str:
        return self.format.unit

    def value(self, row: VariantRow) -> Value:
        return self.figure.of(row, self.place)

    def notes(self, row: VariantRow) -> tuple[Note, ...]:
        return self.figure.notes(row, self.place)

    def text(self, value: float) -> str:
        return self.format.text(value)


class Cell(NamedTuple):
    """A figure as readers see it, with interval and notes separate, and the number to sort by."""

    text: str
    interval: str = ""
    sort: float | None = None
    notes: tuple[Note, ...] = ()

    @property
    def sort_key(self) -> str:
        """``sort`` as JavaScript parses numbers."""
        return repr(self.sort).replace("inf", "Infinity")

    @property
    def whole(self) -> str:
        parts = (self.text, self.interval, ", ".join([note.text for note in self.notes]) if self.notes else "")
        return " ".join(filter(None, parts))


def columns(table: Table) -> tuple[Column, ...]:
    """All columns of a table, in order. Figures with the same places are grouped, place by place."""
    return table.remember("columns", lambda: _columns(table))


def _columns(table: Table, wanted: Callable[[Figure[Any]], bool] = lambda figure: True) -> tuple[Column, ...]:
    return tuple(
        column
        for _, alike in groupby(figures().values(), key=lambda figure: figure.places_in)
        for column in _side_by_side(table, [figure for figure in alike if wanted(figure)])
    )


def columns_of_readers(table: Table) -> tuple[Column, ...]:
    """Those of figures that readers may see: the others have more places than all of these, for programs."""
    return table.remember("columns of readers", lambda: _columns(table, lambda figure: figure.shown is not False))


def columns_of(table: Table, figure: Figure[Any]) -> tuple[Column, ...]:
    """The columns of one figure."""
    return tuple(_side_by_side(table, [figure]))


def shown_columns(table: Table) -> tuple[Column, ...]:
    """The columns for readers: those with a figure, or with a note that says why there is none; groups stand together.

    A group stands where its first figure is declared, also if others of it are declared elsewhere, such as a plugin's.
    """
    return table.remember("shown columns", lambda: _shown_columns(table))


def _shown_columns(table: Table) -> tuple[Column, ...]:
    found = [each for each in columns_of_readers(table) if each.shown and _says_something(table, each)]
    groups = list(dict.fromkeys(each.group for each in found))
    return tuple(sorted(found, key=lambda each: groups.index(each.group)))


def _says_something(table: Table, column: Column) -> bool:
    known = any(value is not None for value in values(table, column))
    return known or any(each.notes for each in cells(table, column))


def column(table: Table, name: str) -> Column:
    """The column with that name. Raises KeyError if there is none."""
    return {each.name: each for each in columns(table)}[name]


def column_groups(columns: Sequence[Column]) -> tuple[tuple[str, int], ...]:
    """The headings above neighbouring columns, and how many each spans."""
    return tuple((name, len(list(members))) for name, members in groupby(columns, lambda each: each.group))


def values(table: Table, column: Column) -> tuple[Value, ...]:
    """The column's figures, row by row; computed once for all formats of a report."""
    figure, place = column.figure, column.place
    return table.remember(("values", figure.name, place), lambda: figure.compute(table.rows, place))


def cells(table: Table, column: Column) -> tuple[Cell, ...]:
    """As readers see them, row by row; written once for all formats of a report."""
    key = "cells", column.figure.name, column.place
    return table.remember(key, lambda: _cells(column, table.rows, values(table, column)))


def cell(column: Column, row: VariantRow) -> Cell:
    """The formatted figure: ``value [low, high]``, or a dash, with a note if it is known why."""
    return _cells(column, (row,), (column.value(row),))[0]


def raw(table: Table, column: Column) -> dict[str, Sequence[float | str | None]]:
    """Full precision under the column's name, with the ends of an interval under ``…_low`` and ``…_high``."""
    found = values(table, column)
    has_estimates = any(isinstance(value, Estimate) for value in found)
    if not (column.figure.interval or has_estimates):
        return {column.name: cast(Sequence[float | str | None], found)}
    split = [
        (value.value, value.low, value.high) if isinstance(value, Estimate) else (value, None, None) for value in found
    ]
    parts = zip(*split, strict=True) if split else ((), (), ())
    return {f"{column.name}{end}": part for end, part in zip(("", "_low", "_high"), parts, strict=True)}


def _cells(column: Column, rows: Sequence[VariantRow], found: Sequence[Value]) -> tuple[Cell, ...]:
    text, notes_of, place = column.format.text, column.figure.notes, column.place

    def written(row: VariantRow, value: Value) -> Cell:
        notes = notes_of(row, place)
        if value is None:
            return Cell(BLANK, notes=notes)
        if isinstance(value, str):
            return Cell(value, notes=notes)
        if not isinstance(value, Estimate):
            return Cell(text(value), "", value, notes)
        known = value.low is not None and value.high is not None
        interval = f"[{text(value.low or 0)}, {text(value.high or 0)}]" if known else ""
        return Cell(text(value.value), interval, value.value, notes)

    return tuple(map(written, rows, found))


def _side_by_side(table: Table, alike: Sequence[Figure[Any]]) -> list[Column]:
    """The columns of figures that have the same places."""
    places = alike[0].taken_at(table) if alike else ()
    made = (_column(table, figure, place) for place in places for figure in alike)
    return [column for column in made if column is not None]


def _column(table: Table, figure: Figure[Any], place: Place) -> Column | None:
    name = figure.column_name(place)
    if name is None:
        return None
    return Column(
        figure,
        place,
        name,
        figure.headed(table, place),
        figure.explained(table, place),
        figure.written(table, place),
        figure.visible(table, place),
    )
