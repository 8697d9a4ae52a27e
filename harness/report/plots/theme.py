"""The look of the plots: colours, markers, and everything around a plot, in plotly's terms.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which readers with any colour
vision can distinguish; every family of methods also has its own marker. Backgrounds are
transparent, and the page sets the colour of text and lines for its light or dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.report import escape

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#808890"
FAMILIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, YELLOW)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon")
PARTS = {
    ("linear", "values"): BLUE,
    ("linear", "scales"): SKY,
    ("embedding", "values"): ORANGE,
    ("embedding", "scales"): YELLOW,
    ("head", "values"): GREEN,
    ("head", "scales"): PURPLE,
}
"""The colour of stored bytes by role and part, in stacking order; others are grey."""
PATTERNS = ("", "/", ".", "\\", "x", "-", "|", "+")
"""Patterns distinguish neighbours in a stack without colour."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SLOWER_TO_FASTER = ((0, VERMILION), (0.5, "#F7F7F7"), (1, BLUE))
"""Every reader can distinguish orange from blue, and both from the light grey between them."""
MOST_LETTERS = 34
"""Maximum length of a variant's name beside an axis."""

GRID = "rgba(128,136,144,0.18)"
WIDTH_PX, HEIGHT_PX = 620, 430
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 72, 24, 16, 52


def family_colour(number: int) -> str:
    return FAMILIES[number % len(FAMILIES)]


def family_symbol(number: int) -> str:
    return SYMBOLS[number % len(SYMBOLS)]


def paper(height_px: int = HEIGHT_PX, top_px: int = TOP_PX) -> dict[str, object]:
    """A layout without axes."""
    return {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": GREY},
        "margin": {"l": LEFT_PX, "r": RIGHT_PX, "t": top_px, "b": BOTTOM_PX},
        "height": height_px,
        "showlegend": False,
    }


def ruler(title: str, extent: tuple[float, float] | None, log: bool = False) -> dict[str, object]:
    """One axis; ``extent`` in plotly's coordinates, None to fit the data.

    A logarithmic axis is numbered at powers of ten; one that has less than two of them as plotly chooses.
    """
    decades = extent is None or math.floor(extent[1]) > math.ceil(extent[0])
    return {
        "title": {"text": escape.plot(title), "standoff": 10},
        "range": extent,
        "type": "log" if log else "linear",
        "dtick": 1 if log and decades else None,
        "exponentformat": "none",
        "gridcolor": GRID,
        "linecolor": GREY,
        "zeroline": False,
    }


def variant_axis(labels: Sequence[str]) -> dict[str, object]:
    """An axis that places variants by number, because two may have the same name."""
    return {
        "tickvals": list(range(len(labels))),
        "ticktext": [escape.plot(_short(label)) for label in labels],
        "range": (len(labels) - 0.5, -0.5),
        "automargin": True,
        "ticksuffix": "  ",
        "gridcolor": GRID,
        "zeroline": False,
    }


def map_paper(heads: Sequence[str], labels: Sequence[str], row_px: int) -> dict[str, object]:
    """The layout of a heat map of variants, with the heads of its columns, which are HTML, above it."""
    return paper(height_px=130 + row_px * len(labels), top_px=72) | {
        "xaxis": {
            "tickvals": list(range(len(heads))),
            "ticktext": list(heads),
            "side": "top",
            "showgrid": False,
            "zeroline": False,
        },
        "yaxis": variant_axis(labels) | {"showgrid": False},
    }


def _short(label: str) -> str:
    return label if len(label) <= MOST_LETTERS else f"{label[: MOST_LETTERS - 1]}…"
