"""Quality by the bits of weights and of the key-value cache, as a heat map: what the two cost together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from harness.core.identity import KvCache
from harness.figures.divergence import KL
from harness.figures.figure import Figure, Whole
from harness.figures.formats import BLANK, significant
from harness.figures.quality import PERPLEXITY_CHANGE
from harness.figures.table import Table, VariantRow
from harness.report import escape
from harness.report.choice import MOST_ROWS
from harness.report.column import Column, cell, columns_of
from harness.report.plots.drawing import Drawing
from harness.report.plots.plot import Plot
from harness.report.plots.theme import VERMILION, map_paper
from harness.stats.estimate import Estimate

SHOWN: tuple[tuple[Figure[Whole], str], ...] = (
    (KL, "KL by bits of weights and key-value cache"),
    (PERPLEXITY_CHANGE, "Perplexity by bits of weights and key-value cache"),
)
"""The figures that are drawn, each in a map of its own, with its title."""
CLOSE_TO_FAR = ((0, "#F7F7F7"), (1, VERMILION))
NAMES = {"model": "own"}
"""Of key-value caches, where the recipe's word says too little."""
LEAST = 1e-4
"""Smaller values, in nat or as a fraction, have the lightest colour: it is that of a logarithm."""

Line = dict[KvCache, VariantRow]
"""A row of the map: one quantization of the weights, by the cache that it runs with."""


def cache_grids(table: Table) -> tuple[Plot, ...]:
    """A map for each figure of which the table has at least two quantizations with the same two caches."""
    lines = _lines(table)
    return tuple(plot for figure, title in SHOWN if (plot := _map(table, lines, figure, title)) is not None)


def _lines(table: Table) -> list[Line]:
    """The rows by what is quantized and by the engine, from many bits to few; the first decode mode of each."""
    found: dict[str, Line] = {}
    for row in table.rows:
        if row.evidence is not None:
            own = replace(row.evidence.variant, kv_cache="model").key
            found.setdefault(own, {}).setdefault(row.kv_cache, row)
    return sorted(found.values(), key=lambda line: -_bits(line))


def _bits(line: Line) -> float:
    """Bits per weight; where no sizes were measured, those that the method was asked for."""
    counted = max((row.bits_per_weight or 0.0 for row in line.values()), default=0.0)
    if counted:
        return counted
    row = next(iter(line.values()))
    assert row.evidence is not None
    method = row.evidence.variant.method
    bits = method.params.get("bits")
    return math.inf if method.name == "none" else float(bits) if isinstance(bits, int) else 0.0


def _map(table: Table, lines: Sequence[Line], figure: Figure[Whole], title: str) -> Plot | None:
    (column,) = columns_of(table, figure) or (None,)
    if column is None:
        return None
    measured = [{cache: row for cache, row in line.items() if _value(column, row) is not None} for line in lines]
    grown = [line for line in measured if len(line) > 1]
    caches = [cache for cache in get_args(KvCache) if sum(cache in line for line in grown) > 1]
    rows = [line for line in grown if sum(cache in line for cache in caches) > 1][:MOST_ROWS]
    if len(caches) < 2 or len(rows) < 2:
        return None
    heads = [NAMES.get(cache, cache) for cache in caches]
    names = [_name(line) for line in rows]
    values = [[_value(column, line[cache]) if cache in line else None for cache in caches] for line in rows]
    drawing = Drawing(map_paper([f"{escape.plot(head)}<br>cache" for head in heads], names, row_px=30))
    drawing.heatmap(
        z=[[None if value is None else math.log10(max(value, LEAST)) for value in line] for line in values],
        text=[[BLANK if value is None else column.text(value) for value in line] for line in values],
        hovertext=[
            [
                f"{escape.plot(name)}, {escape.plot(head)} cache: {escape.plot(_text(column, line.get(cache)))}"
                for cache, head in zip(caches, heads, strict=True)
            ]
            for name, line in zip(names, rows, strict=True)
        ],
        colorscale=CLOSE_TO_FAR,
    )
    unit = f", {column.unit}" if column.unit else ""
    caption = (
        f"{figure.heading}{unit}, from the baseline with the model's own cache: bits of the weights down, of the "
        "key-value cache across. Redder is worse, on a logarithmic scale."
    )
    head = ("Weights", *(f"{head} cache{unit}" for head in heads))
    cells = tuple(
        (name, *(_text(column, line.get(cache)) for cache in caches)) for name, line in zip(names, rows, strict=True)
    )
    return Plot(f"cache-grid-{figure.name.replace('_', '-')}", title, caption, head, cells, drawing.json())


def _name(line: Line) -> str:
    """What is quantized, with the bits that a weight takes, and the engine if it is not the main one."""
    row = next(iter(line.values()))
    assert row.evidence is not None
    bits = f" ({significant(row.bits_per_weight)} bits)" if row.bits_per_weight else ""
    engine = "" if row.engine == "transformers" else f" · {row.engine}"
    return f"{row.evidence.variant.method.label}{bits}{engine}"


def _value(column: Column, row: VariantRow) -> float | None:
    """The figure; the baseline's is zero by definition."""
    found: Any = column.value(row)
    if row.is_reference or (row.is_baseline and found is None):
        return 0.0
    return found.value if isinstance(found, Estimate) else None


def _text(column: Column, row: VariantRow | None) -> str:
    if row is None:
        return BLANK
    return column.text(0.0) if column.value(row) is None and row.is_baseline else cell(column, row).whole
