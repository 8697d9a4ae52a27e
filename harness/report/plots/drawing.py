"""A plot as plotly reads it: traces, and a layout with its notes and lines."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from harness.core.json_values import finite

Spelled = dict[str, Any]


@dataclass
class Drawing:
    """Collects what a plot consists of, in plotly's own words; plotly.js checks them when it draws."""

    layout: Spelled
    traces: list[Spelled] = field(default_factory=list)
    notes: list[Spelled] = field(default_factory=list)
    lines: list[Spelled] = field(default_factory=list)

    def trace(self, kind: str, **words: Any) -> None:
        self.traces.append({"type": kind, **words})

    def note(self, text: str, **words: Any) -> None:
        """An annotation; ``text`` must be escaped, plotly takes some HTML in it."""
        self.notes.append({"text": text, "showarrow": False, **words})

    def line(self, **words: Any) -> None:
        self.lines.append({"type": "line", **words})

    def json(self) -> str:
        """A number that is NaN or infinite is null, for JSON has no word for it."""
        layout = {**self.layout, "annotations": self.notes, "shapes": self.lines}
        return json.dumps(finite({"data": self.traces, "layout": layout}), allow_nan=False, separators=(",", ":"))
