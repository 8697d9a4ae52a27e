"""The page's table: numbers aligned at the point, intervals as bars, notes as footnotes; rows of a large one as data.

``macros.html.j2`` writes the rows, and ``table.js`` draws those that are data, so that both look the same.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from harness.figures.figure import Note, Value
from harness.figures.table import Table, VariantRow
from harness.report import escape
from harness.report.column import Cell, Column, cells, shown_columns, values
from harness.report.extent import extent, is_wide, logarithms
from harness.stats.comparison import Verdict
from harness.stats.estimate import Estimate

LONGEST_WORD, LONGEST_ALONE = 14, 26
"""The letters of a note that has room beside an interval, and of one that has the line for itself."""
NO_BAR = 255
SEPARATOR = "\n"
"""Between the parts of a cell: the figure, its padding, its interval, a word, and the numbers of its footnotes."""

Bars = npt.NDArray[np.uint8]
"""Low end, figure and high end of each row, in percent of the column's width, (rows, 3); NO_BAR without an interval."""


class CellParts(NamedTuple):
    """A cell. ``padding`` takes the place of the digits that the longest fraction of its column has more than it.

    ``bar`` is None in a column without intervals, and empty where the cell has none. ``word`` is a short note;
    ``marks`` are the numbers of its footnotes.
    """

    text: str
    key: str | None
    padding: str
    bar: str | None
    interval: str
    word: str
    marks: str


class Line(NamedTuple):
    """A variant's row. ``marks`` are the numbers of its labels' footnotes."""

    row: VariantRow
    marks: str
    cells: tuple[CellParts, ...]


@dataclass
class Footnotes:
    """Notes, each once, numbered from 1 as they appear."""

    notes: dict[str, int] = field(default_factory=dict)
    _known: dict[tuple[tuple[Note, ...], bool], tuple[str, str]] = field(default_factory=dict)

    def number(self, note: str) -> int:
        return self.notes.setdefault(note, len(self.notes) + 1)

    def of(self, cell: Cell) -> tuple[str, str]:
        """The note that stands beside a figure, and the numbers of the others."""
        if not cell.notes:
            return "", ""
        key = cell.notes, bool(cell.interval)
        if key not in self._known:
            self._known[key] = self._split(*key)
        return self._known[key]

    def _split(self, notes: tuple[Note, ...], beside_interval: bool) -> tuple[str, str]:
        first, *others = notes
        word = first.word if len(first.word) <= (LONGEST_WORD if beside_interval else LONGEST_ALONE) else ""
        below = others if word and not first.detail else notes
        return word, " ".join(str(self.number(note.text)) for note in below)


@dataclass(frozen=True)
class PageTable:
    """The variants of a table as the page shows them."""

    table: Table
    columns: tuple[Column, ...]
    footnotes: Footnotes
    _cells: tuple[tuple[Cell, ...], ...]
    _paddings: tuple[tuple[str, ...], ...]
    _bars: tuple[Bars | None, ...]

    def line(self, place: int) -> Line:
        row = self.table.rows[place]
        return Line(
            row, self.label_numbers(row), tuple(self._parts(number, place) for number in range(len(self.columns)))
        )

    def label_numbers(self, row: VariantRow) -> str:
        return " ".join(map(str, sorted(self.footnotes.number(label.sentence) for label in row.labels)))

    def data(self, places: Sequence[int]) -> str:
        """JSON of these rows, column by column: far smaller than the elements of a table.

        ``keys`` are what a column is sorted by, as little-endian doubles in base64 with NaN for none; null if all are.
        ``bars`` are bytes in base64; null in a column without intervals.
        """
        rows = [self.table.rows[place] for place in places]
        columns = [[each[place] for place in places] for each in self._cells]
        paddings = [[each[place] for place in places] for each in self._paddings]
        return json.dumps(
            {
                "names": _lines([row.label for row in rows]),
                "controls": _marked([row.is_control for row in rows]),
                "fronts": _marked([row.front for row in rows]),
                "statuses": _repeated([row.status for row in rows]),
                "reasons": _repeated(_lines([str(row.reason) for row in rows])),
                "labels": _repeated([self.label_numbers(row) for row in rows]),
                "facts": _repeated([" · ".join(_line(fact.sentence) for fact in row.facts) for row in rows]),
                "verdicts": get_args(Verdict),
                "cells": [self._packed(*pair) for pair in zip(columns, paddings, strict=True)],
                "keys": list(map(_keys, columns)),
                "bars": [None if bars is None else _base64(bars[list(places)]) for bars in self._bars],
                "notes": list(map(_line, self.footnotes.notes)),
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )

    def _parts(self, number: int, place: int) -> CellParts:
        cell, bars = self._cells[number][place], self._bars[number]
        bar = None if bars is None else "" if bars[place, 0] == NO_BAR else _style(*bars[place].tolist())
        word, marks = self.footnotes.of(cell)
        key = None if cell.sort is None else cell.sort_key
        return CellParts(cell.text, key, self._paddings[number][place], bar, cell.interval, word, marks)

    def _packed(self, column: Sequence[Cell], paddings: Sequence[str]) -> list[str]:
        """Its cells, each as one text."""
        notes = [self.footnotes.of(cell) for cell in column]
        parts = zip(
            _lines([cell.text for cell in column]),
            paddings,
            _lines([cell.interval for cell in column]),
            _lines([word for word, _ in notes]),
            [marks for _, marks in notes],
            strict=True,
        )
        return [SEPARATOR.join(each).rstrip(SEPARATOR) for each in parts]


def page_table(table: Table) -> PageTable:
    """The labels of the rows are the first footnotes, because the filter refers to them by number."""
    columns = shown_columns(table)
    footnotes = Footnotes()
    for row in table.rows:
        for label in row.labels:
            footnotes.number(label.sentence)
    found = tuple(cells(table, column) for column in columns)
    paddings = tuple(_paddings([cell.text for cell in column]) for column in found)
    bars = tuple(_bars(values(table, column)) for column in columns)
    return PageTable(table, columns, footnotes, found, paddings, bars)


def _paddings(texts: Sequence[str]) -> tuple[str, ...]:
    """What each number of a column lacks to end where the one with the most decimals does; nothing for words."""
    decimals = [_decimals(text) for text in texts]
    most = max((count for count in decimals if count is not None), default=0)
    if not most:
        return ("",) * len(texts)
    spare = ["." * (count == 0) + "0" * (most - count) for count in range(most + 1)]
    return tuple("" if count is None else spare[count] for count in decimals)


def _decimals(text: str) -> int | None:
    """The decimals of a number, none of a dash; None for other words."""
    whole, _, decimals = text.partition(".")
    if decimals:
        return len(decimals) if decimals.isdecimal() else None
    return 0 if whole[-1:].isdecimal() or not whole[1:] else None


def _bars(found: Sequence[Value]) -> Bars | None:
    ends = np.array(list(map(_ends, found)), dtype=np.float64).reshape(-1, 3)
    known = np.isfinite(ends[:, 1])
    if not known.any():
        return None
    lows, figures, highs = ends[known].T
    if is_wide(figures):
        lows, figures, highs = (logarithms(each, float(figures.min()) / 10) for each in (lows, figures, highs))
    low, high = extent(figures, lows, highs, 0.0)
    shares = (np.stack([lows, figures, highs], axis=1) - low) / (high - low)
    bars = np.full(ends.shape, NO_BAR, dtype=np.uint8)
    bars[known] = np.rint(100 * np.clip(np.nan_to_num(shares, nan=0.0), 0, 1)).astype(np.uint8)
    return bars


def _ends(value: Value) -> tuple[float, float, float]:
    """Low end, figure and high end; NaN where there is no interval."""
    if isinstance(value, Estimate) and value.low is not None and value.high is not None and value.low < value.high:
        return value.low, value.value, value.high
    return math.nan, math.nan, math.nan


def _style(low: int, value: int, high: int) -> str:
    return f"--low:{low};--at:{value};--high:{high}"


def _keys(found: Sequence[Cell]) -> str | None:
    numbers = np.array([math.nan if cell.sort is None else cell.sort for cell in found], dtype="<f8")
    return None if np.isnan(numbers).all() else _base64(numbers)


def _base64(numbers: npt.NDArray[Any]) -> str:
    return base64.b64encode(numbers.tobytes()).decode()


def _repeated(words: Sequence[str]) -> Mapping[str, Any]:
    """Words that many rows share, each once, and the number of each row's."""
    places = {word: place for place, word in enumerate(dict.fromkeys(words))}
    return {"words": list(places), "of": [places[word] for word in words]}


def _marked(flags: Sequence[bool]) -> list[int]:
    return [place for place, flag in enumerate(flags) if flag]


def _lines(texts: list[str]) -> list[str]:
    """Each as ``_line`` writes it; nearly always all of them are so already."""
    short = max(map(len, texts), default=0) <= escape.LONGEST_TEXT
    return texts if short and "".join(texts).isprintable() else list(map(_line, texts))


def _line(text: str) -> str:
    """As the page prints it. Line ends look like spaces there; here they would separate the parts of a cell."""
    shown = escape.bounded(text)
    if shown.isprintable():  # as nearly all are
        return shown
    shown = escape.visible(shown)
    return shown if shown.isprintable() else " ".join(shown.split())
