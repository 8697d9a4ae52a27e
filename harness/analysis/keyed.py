"""The figures of a table's rows, each with what another must share with it to be laid beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.analysis.comparability import Comparability
from harness.analysis.history.values import CaseValue, comparability, values_of
from harness.analysis.kept import NOTHING, KeptEntries
from harness.analysis.regression.cases import Case, cases
from harness.analysis.summaries import Summaries
from harness.core.exact_text import builder
from harness.core.record import RunRecord
from harness.figures.figure import Figure, Place
from harness.figures.table import Table, VariantRow
from harness.plugins import gates
from harness.stats.estimate import Estimate

OF_THE_VARIANT = frozenset(
    f"asked {name}"
    for name in (
        "method",
        "scope",
        "skip",
        "overrides",
        "calibration",
        "seed",
        "kv_cache",
        "engine",
        "engine_params",
        "decode_mode",
    )
) | {"decode_mode", "decode mode", "engine", "cache of keys and values"}
"""Conditions in which two variants may differ and be compared all the same: they are what is compared."""


@dataclass(frozen=True)
class KeyedFigure:
    """A figure of one row at one place; figures of two rows are comparable if their ``conditions`` are equal.

    They are one figure measured again if what ``whole`` holds besides, the parts of the variant, is equal too.
    """

    figure: Figure[Any]
    place: Place
    value: Estimate
    conditions: Comparability
    whole: Comparability


def keyed_figures(
    tables: Sequence[Table], records: Sequence[RunRecord], kept: KeptEntries = NOTHING
) -> dict[int, tuple[KeyedFigure, ...]]:
    """By ``id`` of the row, its figures that have a gate: those by which results are compared.

    ``kept`` are values that were derived from the same runs before.
    """
    values = _values(records, kept)
    return {id(row): tuple(_of_row(table, row, values)) for table in tables for row in table.rows}


@dataclass(frozen=True)
class AlikeFigures:
    """The rows, by number, whose figures at a place are comparable; ``place`` is the number of the figure's place."""

    figure: str
    place: int
    conditions: Mapping[str, str]
    rows: tuple[int, ...]


def alike_figures(table: Table, most: int, summaries: Summaries | None = None) -> tuple[AlikeFigures, ...]:
    """The figures of the first ``most`` rows of a table by their conditions, from the runs of these rows alone.

    They are taken from the ``summaries`` if they were derived from the same rows before, and the values of runs if
    they were derived from the same runs.
    """
    summaries = summaries or Summaries({}, {})
    rows = table.rows[:most]

    def make() -> tuple[AlikeFigures, ...]:
        records = {id(run): run for row in rows for run in row.runs_with_figures}
        values = _values(list(records.values()), summaries.of_figures())
        return alike_on(table, rows, {id(row): tuple(_of_row(table, row, values)) for row in rows})

    return summaries.of_rows(f"alike {most}", table.rows, make, _read_alike)


def alike_on(
    table: Table, rows: Sequence[VariantRow], keyed: Mapping[int, Sequence[KeyedFigure]]
) -> tuple[AlikeFigures, ...]:
    """The same from figures that are known, by ``id`` of the row."""
    found: dict[tuple[str, int, str], tuple[Comparability, list[int]]] = {}
    for number, row in enumerate(rows):
        for each in keyed.get(id(row), ()):
            key = each.figure.name, each.figure.taken_at(table).index(each.place), each.conditions.key
            found.setdefault(key, (each.conditions, []))[1].append(number)
    return tuple(
        AlikeFigures(figure, place, conditions.conditions, tuple(members))
        for (figure, place, _), (conditions, members) in found.items()
    )


_read_alike: Callable[[Any], tuple[AlikeFigures, ...]] = builder(tuple[AlikeFigures, ...])

_Values = Mapping[tuple[str, str, str], Sequence[tuple[Case, CaseValue]]]
"""By variant, decode mode and figure."""


def _values(records: Sequence[RunRecord], kept: KeptEntries) -> _Values:
    figures = list(gates().values())
    found: dict[tuple[str, str, str], list[tuple[Case, CaseValue]]] = {}
    for case in cases(records).values():
        if case.measured:
            for name, values in values_of(case, figures, kept).items():
                spec = case.spec
                of_case = found.setdefault((spec.variant.key, spec.decode_mode, name), [])
                of_case.extend((case, value) for value in values)
    return found


def _of_row(table: Table, row: VariantRow, values: _Values) -> Iterator[KeyedFigure]:
    runs = row.runs_with_figures
    if not runs:
        return
    keys = {(run.spec.variant.key, run.spec.decode_mode) for run in runs}
    for name, figure in gates().items():
        alike = [each for key in keys for each in values.get((*key, name), ())]
        for place in figure.taken_at(table) if alike else ():
            value = figure.of(row, place)
            estimate = value if isinstance(value, Estimate) else None
            if estimate is None and isinstance(value, int | float):
                estimate = Estimate(float(value), None, None, 1, "")
            same = _same(alike, estimate, place) if estimate else None
            if estimate is not None and same is not None:
                whole = comparability(same[0], figure, same[1])
                yield KeyedFigure(figure, place, estimate, _shared(whole), whole)


def _same(alike: Sequence[tuple[Case, CaseValue]], estimate: Estimate, place: Place) -> tuple[Case, CaseValue] | None:
    """The value of a figure at a place. A comparison leaves suspect timings out, so a speed may be another number."""
    equal = (each for each in alike if math.isclose(each[1].value, estimate.value, rel_tol=1e-9))
    there = (each for each in alike if each[1].where == place.label)
    return next(equal, None) or next(there, None) or (alike[0] if len(alike) == 1 else None)


def _shared(whole: Comparability) -> Comparability:
    return Comparability({name: text for name, text in whole.conditions.items() if name not in OF_THE_VARIANT})
