"""Figures over time for programs. Keys stay; what is added later is added beside them."""

from __future__ import annotations

import json
from dataclasses import asdict

from harness.analysis.history import History
from harness.core.json_values import finite
from harness.report.comparison.json_text import DIGITS

SCHEMA_VERSION = 1
"""Raised where a key goes or changes its meaning."""


def json_text(found: History) -> str:
    """One JSON object; numbers are plain, what there is none of is null."""
    whole = {"schema_version": SCHEMA_VERSION, **asdict(found)}
    return json.dumps(finite(whole, DIGITS), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
