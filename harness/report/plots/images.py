"""The plots as separate files: PNG or SVG, drawn by a browser that kaleido controls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from harness.core.owner import temporary_folder
from harness.errors import UsageError
from harness.report import escape
from harness.report.plots.plot import Plot
from harness.report.plots.theme import WIDTH_PX

INK, WHITE = "#1b2127", "#ffffff"
TITLE_PX = 40
WIDE_PX = WIDTH_PX + 100
MISSING = "PNG and SVG need kaleido; install it with: pip install 'qharness[images]'"
NO_BROWSER = (
    "PNG and SVG are drawn by Chrome or Chromium, and none was found; install one (Debian: apt install chromium) "
    "or name its file in $BROWSER_PATH"
)


def images(figures: Sequence[Plot], suffix: str) -> list[bytes]:
    """The plots, each as a file of that format; one browser draws them all.

    Raises UsageError if kaleido or a browser is missing.
    """
    if not figures:
        return []
    try:
        import kaleido
        from choreographer.errors import ChromeNotFoundError
    except ImportError:
        raise UsageError(MISSING) from None
    with temporary_folder() as folder:
        paths = [folder / f"{number}.{suffix}" for number in range(len(figures))]
        asked = [
            {"fig": on_paper(figure), "path": path, "opts": {"format": suffix, "scale": 2 if suffix == "png" else 1}}
            for figure, path in zip(figures, paths, strict=True)
        ]
        try:
            kaleido.write_fig_from_object_sync(asked, kopts={"mathjax": False})  # it would be fetched
        except ChromeNotFoundError:
            raise UsageError(NO_BROWSER) from None
        return [path.read_bytes() for path in paths]


def on_paper(figure: Plot) -> dict[str, Any]:
    """The plot for plotly, with a title, a width and colours for paper; in a page, the page sets these."""
    drawn: dict[str, Any] = json.loads(figure.json)
    layout = drawn["layout"]
    margin = layout["margin"]
    layout |= {
        "title": {
            "text": escape.plot(figure.title),
            "x": 0.02,
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 14},
        },
        "margin": margin | {"t": margin["t"] + TITLE_PX},
        "width": WIDE_PX,
        "height": layout["height"] + TITLE_PX,
        "paper_bgcolor": WHITE,
        "plot_bgcolor": WHITE,
        "font": layout["font"] | {"color": INK},
    }
    return drawn
