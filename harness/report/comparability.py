"""Which figures of another report may be set beside those of a table: the comparability keys of its columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from harness.analysis.comparability import Comparability
from harness.analysis.keyed import KeyedFigure, keyed_figures
from harness.core.record import RunRecord
from harness.figures.table import Table, VariantRow
from harness.report.column import Column

SHORT = 8
"""The first letters of a key, which are shown: enough to tell a few thousand apart."""
MOST_ROWS = 200
"""Variants of a table whose keys are looked up: the others were measured by the same recipes."""
LONGEST = 60


OWN = frozenset({"figure", "items", "unit", "evidence", "metric version"})
"""Conditions that tell the figures of one measurement apart."""


@dataclass(frozen=True)
class ColumnKey:
    """The figures of a column that have one key; ``rows`` names the variants if the column has several keys."""

    column: Column
    conditions: Comparability
    rows: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        return self.conditions.key[:SHORT]

    @property
    def whole(self) -> str:
        """The key, and the conditions that other figures of the same measurement do not share."""
        return " · ".join([self.conditions.key, *self._sentences(own=True)])

    @property
    def shared(self) -> tuple[str, ...]:
        """The conditions of its measurement."""
        return tuple(self._sentences(own=False))

    def _sentences(self, own: bool) -> Iterator[str]:
        """Each condition that is not left at its default: ``text: wikitext-2``."""
        for name, text in sorted(self.conditions.conditions.items()):
            if (name in OWN) == own and text != "null":
                words = text if text.isprintable() else json.dumps(text)
                yield f"{name.removeprefix('asked ')}: {words if len(words) <= LONGEST else f'{words[: LONGEST - 1]}…'}"


def measurements(keys: Sequence[ColumnKey]) -> tuple[tuple[ColumnKey, ...], ...]:
    """The keys of the figures of each measurement together, in their order."""
    found: dict[tuple[str, ...], list[ColumnKey]] = {}
    for each in keys:
        found.setdefault(each.shared, []).append(each)
    return tuple(map(tuple, found.values()))


def column_keys(
    table: Table, columns: Sequence[Column], keyed: Mapping[int, Sequence[KeyedFigure]] | None = None
) -> tuple[ColumnKey, ...]:
    """The keys of these columns of a table, in their order; none of columns by which nothing is compared.

    ``keyed`` are the figures of its rows by ``id``, if they are known.
    """
    rows = tuple(islice(table.rows, MOST_ROWS))
    if keyed is None:
        keyed = keyed_figures([table], list(_records(rows)))
    found: dict[tuple[str, object], dict[str, tuple[Comparability, list[str]]]] = {}
    for row in rows:
        for each in keyed.get(id(row), ()):
            of_column = found.setdefault((each.figure.name, each.place), {})
            of_column.setdefault(each.conditions.key, (each.conditions, []))[1].append(row.label)
    return tuple(
        ColumnKey(column, conditions, tuple(labels) if len(of_column) > 1 else ())
        for column in columns
        for of_column in [found.get((column.figure.name, column.place), {})]
        for conditions, labels in of_column.values()
    )


def _records(rows: Sequence[VariantRow]) -> Iterator[RunRecord]:
    """The runs that ended well, each once."""
    yield from {id(run): run for row in rows for run in row.runs_that_ended_well}.values()
