"""Small panels side by side that share their variants: scores of tasks, bits per weight, the cost of quantizing."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.figures.table import Table, VariantRow
from harness.report.choice import chosen, left_out
from harness.report.column import Column, cell
from harness.report.plots.axes import WIDE, estimate, intervals
from harness.report.plots.drawing import Drawing
from harness.report.plots.figure import Figure, families
from harness.report.plots.theme import GREY, family_colour, family_symbol, paper, ruler, variant_axis
from harness.report.tables import columns

MOST_PANELS = 4
GAP = 0.05
"""Between two panels, of the whole width."""
FROM_ZERO = ("_bytes", "_s", "_per_weight", "_probability")
"""How the names of columns end whose axis begins at zero."""


@dataclass(frozen=True)
class _Topic:
    """One figure: a panel per column, their names; the baseline is drawn as a line where it has a value."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    titles: tuple[str, ...]


def panels_of(table: Table) -> tuple[Figure, ...]:
    """Those of the topics that have data."""
    found = {each.name: each for each in columns(table)}
    scores = [each for each in found.values() if each.group == "Tasks" and each.shown and each.interval]
    scores = [each for each in scores if not each.name.endswith("_change")]
    topics = [
        _Topic(
            f"tasks-{number}" if number else "tasks",
            "Scores on tasks",
            "With their 95% intervals; the dashed line is the baseline's score. Whether a difference is real is said "
            "in the table, where questions are paired.",
            tuple(part),
            tuple(column.heading for column in part),
        )
        for number, part in enumerate(_batches(scores))
    ]
    likely = found["front_probability"]
    topics.append(
        _Topic("front-probability", "Probability of being on the front", likely.help, (likely,), (likely.unit,))
    )
    bits = [found[name] for name in ("linear_bits_per_weight", "checkpoint_bits_per_weight") if name in found]
    cost = [found[name] for name in ("quantize_s", "quantize_peak_bytes") if name in found]
    topics += [
        _Topic(
            "bits-per-weight",
            "Bits per weight",
            "Of a linear layer's weight, scales and zero points included, as it lies in memory and as it is stored on "
            "disk. More in memory than on disk: it is dequantized when it is loaded.",
            tuple(bits),
            ("in memory", "on disk"),
        ),
        _Topic(
            "cost-of-quantizing",
            "What quantizing costs",
            "Wall time and peak memory of quantizing once, or of quantizing at each load.",
            tuple(cost),
            ("time, s", f"peak memory, {cost[-1].unit}"),
        ),
    ]
    return tuple(figure for topic in topics if (figure := _panels(table, topic)))


def _batches(scores: Sequence[Column]) -> list[Sequence[Column]]:
    return [scores[start : start + MOST_PANELS] for start in range(0, len(scores), MOST_PANELS)]


def _panels(table: Table, topic: _Topic) -> Figure | None:
    named = [
        (column, title)
        for column, title in zip(topic.columns, topic.titles, strict=True)
        if any(_finite(column, row) for row in table.rows if not row.is_baseline)
    ]
    measured = [row for row in table.rows if any(_finite(column, row) for column, _ in named) and not row.is_baseline]
    rows = chosen(measured)
    if not named or not rows:
        return None
    layout = paper(height_px=96 + 26 * len(rows), top_px=36) | {"yaxis": variant_axis([row.label for row in rows])}
    drawing = Drawing(layout)
    width = (1 - GAP * (len(named) - 1)) / len(named)
    for number, (column, title) in enumerate(named):
        left = number * (width + GAP)
        _draw(drawing, table, rows, column, title, number, (left, left + width))
    head = ("Variant", *(f"{title}, {column.unit}".removesuffix(", ") for column, title in named))
    told = tuple((row.label, *(cell(column, row).whole for column, _ in named)) for row in rows)
    caption = topic.caption + left_out(len(rows), len(measured))
    return Figure(topic.name, topic.title, caption, head, told, drawing.json())


def _draw(
    drawing: Drawing,
    table: Table,
    rows: Sequence[VariantRow],
    column: Column,
    title: str,
    number: int,
    domain: tuple[float, float],
) -> None:
    there = [(place, row) for place, row in enumerate(rows) if _finite(column, row)]
    found = [estimate(column.value(row)) for _, row in there]
    values = [each.value * column.factor for each in found]
    log = min(values) > 0 and max(values) > WIDE * min(values)
    axis = f"x{number + 1}" if number else "x"
    methods = families(table.rows)
    drawing.trace(
        "scatter",
        x=values,
        y=[place for place, _ in there],
        xaxis=axis,
        error_x=intervals(found, lambda value: value * column.factor) | {"color": GREY},
        mode="markers",
        marker={
            "size": 9,
            "color": [family_colour(methods[row.method]) for _, row in there],
            "symbol": [family_symbol(methods[row.method]) for _, row in there],
        },
        text=[f"{html.escape(row.label)}: {cell(column, row).whole}" for _, row in there],
        hoverinfo="text",
    )
    ends = (
        [0.0, *values] if not log and column.name.endswith(("_bytes", "_s", "per_weight", "_probability")) else values
    )
    ruled = ruler("", _range(ends, log), log) | {"domain": domain, "nticks": 6}
    drawing.layout[f"xaxis{number + 1 if number else ''}"] = ruled
    drawing.note(
        html.escape(title),
        x=sum(domain) / 2,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="center",
        yanchor="bottom",
        yshift=6,
    )
    base = table.baseline
    if column.group == "Tasks" and base is not None and _finite(column, base):
        place = estimate(column.value(base)).value * column.factor
        drawing.line(
            x0=place,
            x1=place,
            y0=0,
            y1=1,
            xref=axis,
            yref="paper",
            line={"color": GREY, "width": 1.2, "dash": "dash"},
        )


def _range(values: Sequence[float], log: bool) -> tuple[float, float] | None:
    """None lets plotly choose: it knows how far intervals reach."""
    if log or min(values) != 0:
        return None
    return 0.0, max(values) * 1.1 or 1.0


def _finite(column: Column, row: VariantRow) -> bool:
    value = column.value(row)
    return value is not None and not isinstance(value, str) and math.isfinite(estimate(value).value)
