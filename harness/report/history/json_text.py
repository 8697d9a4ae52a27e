"""Figures over time as JSON. Keys are stable; new ones may be added."""

from __future__ import annotations

import json
from dataclasses import asdict

from harness.analysis.history.series import History
from harness.core.json_values import finite
from harness.report import escape
from harness.report.comparison.json_text import DIGITS

SCHEMA_VERSION = 1
"""Raised when a key is removed or changes its meaning."""


def json_text(found: History) -> str:
    """One JSON object with plain numbers; missing values are null."""
    whole = {"schema_version": SCHEMA_VERSION, **asdict(found), "unread": [each.sentence for each in found.damaged]}
    del whole["damaged"]
    text = json.dumps(finite(whole, DIGITS), indent=1, ensure_ascii=False, allow_nan=False)
    return escape.json_text(text) + "\n"
