"""Whole trade-off tables as text, so that another question about the same records derives no table again.

The text holds what depends on all rows of a table. A row's other figures are kept among the summaries, under its key.
Records are named by their places among all. They are built when they are used, and an answer uses few of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from harness.analysis.summaries import Summaries
from harness.analysis.tradeoff import front_probabilities_of
from harness.core.exact_text import as_text, builder
from harness.core.record import Measurement, RunRecord
from harness.figures import summary
from harness.figures.evidence import Evidence
from harness.figures.table import Table, VariantRow

OF_TABLE = ("labels", "perplexity_comparison", "tasks", "answers", "front")
"""The figures of a row that the other rows of its table change: what all have in common, and verdicts on all."""


@dataclass(frozen=True)
class PlacedRow:
    """``key`` is that of the row's figures among the summaries, ``texts`` are those of the fields ``OF_TABLE``.

    ``evidence`` has, for each field of ``Evidence``, the places of records; of the noise floor that of its record, and
    its number among the measurements there.
    """

    key: str
    label: str
    front_place: int
    texts: tuple[str, ...]
    evidence: tuple[Any, ...]


@dataclass(frozen=True)
class PlacedTable:
    """``own`` are the fields of the table, without its rows."""

    own: tuple[Any, ...]
    rows: tuple[PlacedRow, ...]


_read: Callable[[Any], tuple[PlacedTable, ...]] = builder(tuple[PlacedTable, ...])


def written(tables: Sequence[Table], records: Sequence[RunRecord], summaries: Summaries) -> str | None:
    """Tables that were derived from all the records; None if one of these has no seal."""
    places: dict[int, Any] = {id(record): place for place, record in enumerate(records)}
    places |= {id(each): (places[id(run)], number) for run in records for number, each in _floors(run)}
    found = []
    for table in tables:
        keys = [summaries.row_key(row) for row in table.rows]
        if None in keys:
            return None
        own = [getattr(table, name) for name in _own_builders()]
        found.append([own, [_placed(row, key, places) for row, key in zip(table.rows, keys, strict=True)]])
    return as_text(found)


def read(text: str, records: Sequence[RunRecord], summaries: Summaries) -> tuple[Table, ...] | None:
    """The tables as they were derived from the same records; None if the figures of a row are not kept any more."""
    found = []
    for placed in _read(json.loads(text)):
        rows = [_row(each, records, summaries) for each in placed.rows]
        complete = [row for row in rows if row is not None]
        if len(complete) < len(rows):
            return None
        own = {name: build(value) for (name, build), value in zip(_own_builders().items(), placed.own, strict=True)}
        found.append(Table(rows=_with_shares(complete, summaries), **own))
    return tuple(found)


def _floors(run: RunRecord) -> Iterable[tuple[int, Measurement]]:
    """The measurements of a run that measures no variant, which may be noise floors; such runs are few."""
    return enumerate(run.outcome.measurements) if run.spec.job.row_rank is None else ()


def _placed(row: VariantRow, key: str | None, places: Mapping[int, Any]) -> list[Any]:
    """As ``PlacedRow``."""
    texts = [as_text(getattr(row, name)) for name in OF_TABLE]
    evidence = [_place(getattr(row.evidence, each.name), places) for each in fields(Evidence)]
    return [key, row.label, row.front_place, texts, evidence]


def _place(value: Any, places: Mapping[int, Any]) -> Any:
    if isinstance(value, tuple):
        return [places[id(each)] for each in value]
    return places[id(value)] if isinstance(value, RunRecord | Measurement) else value


def _row(placed: PlacedRow, records: Sequence[RunRecord], summaries: Summaries) -> VariantRow | None:
    evidence = PlacedEvidence.of(placed.evidence, records)
    text = summaries.kept_row(placed.key, evidence)
    changed = dict(zip(OF_TABLE, placed.texts, strict=True))
    return None if text is None else summary.read_changed(text, changed, evidence, placed.label, placed.front_place)


def _with_shares(rows: Sequence[VariantRow], summaries: Summaries) -> tuple[VariantRow, ...]:
    shares = front_probabilities_of(sorted(rows, key=lambda row: row.front_place), summaries)
    return tuple(row.altered(front_shares=shares) for row in rows)


class PlacedEvidence(Evidence):
    """Evidence whose records are built when they are used."""

    records: Sequence[RunRecord]
    places: Sequence[Any]

    @classmethod
    def of(cls, places: Sequence[Any], records: Sequence[RunRecord]) -> PlacedEvidence:
        made = object.__new__(cls)
        vars(made).update(records=records, places=places)
        return made


class _PlacedField:
    """A field of evidence while it is a place. What is found there hides this descriptor, which has no ``__set__``."""

    def __init__(self, number: int, name: str) -> None:
        self._number, self._name = number, name

    def __get__(self, evidence: PlacedEvidence, kind: type[PlacedEvidence]) -> Any:
        made = _found(self._name, evidence.places[self._number], evidence.records)
        vars(evidence)[self._name] = made
        return made


def _found(name: str, place: Any, records: Sequence[RunRecord]) -> Any:
    if place is None or isinstance(place, bool):
        return place
    if name == "noise_floor":
        run, number = place
        return records[run].outcome.measurements[number]
    return records[place] if isinstance(place, int) else tuple(records[each] for each in place)


for _number, _each in enumerate(fields(Evidence)):
    setattr(PlacedEvidence, _each.name, _PlacedField(_number, _each.name))


@cache
def _own_builders() -> Mapping[str, Callable[[Any], Any]]:
    """What makes each field of a table from JSON, but its rows."""
    hints = get_type_hints(Table)
    return {each.name: builder(hints[each.name]) for each in fields(Table) if each.init and each.name != "rows"}
