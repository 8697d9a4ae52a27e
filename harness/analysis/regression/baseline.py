"""Whether the unquantized baseline changed too: then the cause is the machine or a shared library, not the variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.analysis.regression.findings import Finding
from harness.analysis.regression.matching import Match
from harness.core.identity import DecodeMode
from harness.figures.statistic import PerProcess
from harness.plugins import gates

Key = tuple[str, str, str, str, DecodeMode | None]


def beside_baseline(findings: Sequence[Finding], matches: Sequence[Match]) -> list[Finding]:
    """The findings; for a speed that changed, adds how the baseline's changed between the same two sessions."""
    modes = {each.head.spec.case_id: each.head.spec.decode_mode for each in matches}
    base_ids = {each.head.spec.case_id for each in matches if each.head.spec.is_baseline}
    theirs = {_key(found, modes): found for found in findings if found.case_id in base_ids and found.change}
    return [
        replace(found, reasons=(*found.reasons, *_baseline_note(theirs.get(_key(found, modes)))))
        if found.verdict in ("improved", "regressed") and found.case_id not in base_ids
        else found
        for found in findings
    ]


def _key(found: Finding, modes: Mapping[str, DecodeMode]) -> Key:
    return found.model, found.engine, found.metric, found.where, modes.get(found.case_id)


def _baseline_note(baseline: Finding | None) -> tuple[str, ...]:
    if baseline is None or baseline.change is None or not isinstance(gates()[baseline.metric].statistic, PerProcess):
        return ()
    return (f"the unquantized baseline changed by {baseline.change.value:+.1%} ({baseline.verdict})",)
