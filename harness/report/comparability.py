"""Which figures of another report may be set beside those of a table: the comparability keys of its columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.analysis.comparability import Comparability
from harness.analysis.keyed import AlikeFigures, KeyedFigure, alike_figures, alike_on
from harness.analysis.summaries import Summaries
from harness.figures.table import Table
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
    table: Table,
    columns: Sequence[Column],
    keyed: Mapping[int, Sequence[KeyedFigure]] | None = None,
    summaries: Summaries | None = None,
) -> tuple[ColumnKey, ...]:
    """The keys of these columns of a table, in their order; none of columns by which nothing is compared.

    ``keyed`` are the figures of its rows by ``id``, if they are known. Otherwise they are taken from the ``summaries``
    if they were derived from the same rows before.
    """
    rows = table.rows[:MOST_ROWS]
    found = alike_on(table, rows, keyed) if keyed is not None else alike_figures(table, MOST_ROWS, summaries)
    of_columns: dict[tuple[str, int], list[AlikeFigures]] = {}
    for each in found:
        of_columns.setdefault((each.figure, each.place), []).append(each)
    return tuple(
        ColumnKey(
            column,
            Comparability(each.conditions),
            tuple(rows[number].label for number in each.rows) if len(of_column) > 1 else (),
        )
        for column in columns
        if column.figure.gate is not None
        for of_column in [of_columns.get((column.figure.name, column.figure.taken_at(table).index(column.place)), [])]
        for each in of_column
    )
