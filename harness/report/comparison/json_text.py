"""A comparison as JSON. Keys are stable; new ones may be added."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from harness.analysis.regression.findings import Finding, Regression, Side
from harness.core.json_values import finite
from harness.report import escape

SCHEMA_VERSION = 1
"""Raised when a key is removed or changes its meaning."""

DIGITS = 10
"""Significant digits of a number: processors round the digits beyond them differently, so they are not written."""


def json_text(found: Regression) -> str:
    """One JSON object with plain numbers; missing values are null."""
    whole = {
        "schema_version": SCHEMA_VERSION,
        "outcome": found.outcome,
        "exit_code": int(found.exit_code),
        "alpha": found.alpha,
        "base": _side(found.base),
        "head": _side(found.head),
        "gates": {"origin": found.origin, "thresholds": dict(found.gates), "unmeasured": list(found.unmeasured)},
        "findings": [_finding(each) for each in found.findings],
        "environment": [asdict(entry) for entry in found.environment],
        "new": list(found.new),
    }
    text = json.dumps(finite(whole, DIGITS), indent=1, ensure_ascii=False, allow_nan=False)
    return escape.json_text(text) + "\n"


def _side(side: Side) -> dict[str, Any]:
    """``unread`` are damaged records, which were left out, and damaged logs."""
    return {
        "name": side.name,
        "sessions": side.sessions,
        "cases": side.cases,
        "unread": [each.sentence for each in side.damaged],
        "implausible": {run: [asdict(each) for each in reasons] for run, reasons in side.implausible.items()},
    }


def _finding(finding: Finding) -> dict[str, Any]:
    entry = asdict(finding)
    change = finding.change
    entry["change"] = (
        None if change is None else {"value": change.value, "low": change.low, "high": change.high, "is": change.method}
    )
    return entry
