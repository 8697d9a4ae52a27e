"""A line of estimates with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.figures.table import VariantRow
from harness.report import escape
from harness.report.plots.drawing import Drawing
from harness.report.plots.theme import DASHES, GRID, family_colour, family_symbol, paper
from harness.stats.estimate import Estimate

MOST_LINES = 10


def lines_layout(along: str, upwards: Mapping[str, object], lines: int) -> dict[str, Any]:
    """The layout of lines over categories, with a legend below that takes room for each three of them."""
    return paper(top_px=16) | {
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0},
        "xaxis": {"type": "category", "title": {"text": escape.plot(along), "standoff": 10}, "gridcolor": GRID},
        "yaxis": upwards,
        "height": 460 + 18 * ((lines + 2) // 3),
    }


def look_of(row: VariantRow, families: Mapping[str, int], number: int) -> dict[str, Any]:
    """How a variant's line looks: those of one method share its colour and marker, and dashes distinguish them."""
    family = families[row.method]
    return {
        "line": {"color": family_colour(family), "width": 1.6, "dash": DASHES[number % len(DASHES)]},
        "marker": {"symbol": family_symbol(family), "size": 7},
    }


def draw_line(
    drawing: Drawing,
    name: str,
    found: Sequence[tuple[str, Estimate]],
    look: Mapping[str, Any],
    least: float = -math.inf,
) -> None:
    """Estimates by category; what lies below ``least`` is drawn there."""
    values = [max(value.value, least) for _, value in found]
    drawing.trace(
        "scatter",
        x=[escape.plot(category) for category, _ in found],
        y=values,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [
                0 if each.high is None else max(each.high - at, 0) for (_, each), at in zip(found, values, strict=True)
            ],
            "arrayminus": [
                0 if each.low is None else max(at - max(each.low, least), 0)
                for (_, each), at in zip(found, values, strict=True)
            ],
            "thickness": 0.8,
            "width": 2,
        },
        mode="lines+markers",
        name=escape.plot(name),
        **look,
    )
