"""The rows of a large table as data, which the page's script draws when they come into view: see ``table.js``."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from harness.core.label import Label
from harness.figures.table import Table
from harness.report import escape
from harness.report.column import Cell, Column, cells
from harness.stats.comparison import Verdict

SEPARATOR = "\n"
"""Between the parts of a cell: the figure, its interval, and each of its notes."""


def lazy_rows(table: Table, columns: Sequence[Column], labels: Sequence[Label]) -> str:
    """JSON of every variant but the baselines, column by column: far smaller than the elements of a table.

    ``labels`` are those of the rows, which refer to them by number, from 1. Texts are those that a drawn row shows.
    ``keys`` are what a column is sorted by, as little-endian doubles in base64 with NaN for none; null if all are.
    """
    places = [place for place, row in enumerate(table.rows) if not row.is_baseline]
    rows = [table.rows[place] for place in places]
    numbers = {label: number for number, label in enumerate(labels, 1)}
    facts = [" · ".join(_line(fact.sentence) for fact in row.facts) for row in rows]
    of_columns = [[found[place] for place in places] for found in (cells(table, column) for column in columns)]
    return json.dumps(
        {
            "names": [_line(row.label) for row in rows],
            "controls": _marked([row.is_control for row in rows]),
            "fronts": _marked([row.front for row in rows]),
            "statuses": _repeated([row.status for row in rows]),
            "reasons": _repeated([_line(str(row.reason)) for row in rows]),
            "labels": [[numbers[label] for label in row.labels if label in numbers] for row in rows],
            "sentences": [_line(label.sentence) for label in labels],
            "facts": _repeated(facts),
            "verdicts": get_args(Verdict),
            "cells": [list(map(_packed, found)) for found in of_columns],
            "keys": [_keys(found) for found in of_columns],
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _packed(cell: Cell) -> str:
    parts = (cell.text, cell.interval, *cell.notes) if cell.interval or cell.notes else (cell.text,)
    return SEPARATOR.join(map(_line, parts))


def _keys(found: Sequence[Cell]) -> str | None:
    numbers = np.array([math.nan if cell.sort is None else cell.sort for cell in found], dtype="<f8")
    return None if np.isnan(numbers).all() else base64.b64encode(numbers.tobytes()).decode()


def _repeated(words: Sequence[str]) -> Mapping[str, Any]:
    """Words that many rows share, each once, and the number of each row's."""
    places = {word: place for place, word in enumerate(dict.fromkeys(words))}
    return {"words": list(places), "of": [places[word] for word in words]}


def _marked(flags: Sequence[bool]) -> list[int]:
    return [place for place, flag in enumerate(flags) if flag]


def _line(text: str) -> str:
    """As the page prints it. Line ends look like spaces there; here they would separate the parts of a cell."""
    shown = escape.visible(escape.bounded(text))
    return shown if shown.isprintable() else " ".join(shown.split())
