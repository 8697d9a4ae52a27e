"""A plot in plotly's format: traces, and a layout with its annotations and lines."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from harness.core.json_values import finite

Spelled = dict[str, Any]


@dataclass
class Drawing:
    """Collects the parts of a plot in plotly's own terms; plotly.js validates them when it draws."""

    layout: Spelled
    traces: list[Spelled] = field(default_factory=list)
    notes: list[Spelled] = field(default_factory=list)
    lines: list[Spelled] = field(default_factory=list)

    def trace(self, kind: str, **words: Any) -> None:
        self.traces.append({"type": kind, **words})

    def heatmap(self, **words: Any) -> None:
        """Adds coloured cells with their ``text`` in them and their ``hovertext`` above; the text is the scale."""
        own = {"texttemplate": "%{text}", "hoverinfo": "text", "showscale": False, "xgap": 2, "ygap": 2}
        self.trace("heatmap", **{**own, **words})

    def note(self, text: str, **words: Any) -> None:
        """Adds an annotation; ``text`` must be escaped, because plotly interprets some HTML in it."""
        self.notes.append({"text": text, "showarrow": False, **words})

    def line(self, **words: Any) -> None:
        self.lines.append({"type": "line", **words})

    def json(self) -> str:
        """NaN and infinity become null, because JSON cannot express them."""
        layout = {**self.layout, "annotations": self.notes, "shapes": self.lines}
        drawn = {"data": self.traces, "layout": layout}
        try:
            return json.dumps(drawn, allow_nan=False, separators=(",", ":"))
        except ValueError:  # few plots have any
            return json.dumps(finite(drawn), allow_nan=False, separators=(",", ":"))
