"""A plot as plotly reads it: traces, and a layout with its notes and lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
        """What is no number, or infinite, is left out, for JSON has no word for it."""
        layout = {**self.layout, "annotations": self.notes, "shapes": self.lines}
        return json.dumps(_finite({"data": self.traces, "layout": layout}), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
