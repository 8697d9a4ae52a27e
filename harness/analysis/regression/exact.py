"""Metrics without noise: what is stored, and how much of it is quantized. A machine changes none of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.analysis.regression.cases import Case
from harness.analysis.regression.findings import Finding, Verdict
from harness.analysis.regression.matching import Match, differing
from harness.analysis.regression.pending import Gated, start
from harness.analysis.stats import Estimate
from harness.gates import Gate
from harness.record import Measurement

ROUNDING = 1e-12
"""Relative difference below which two ratios of the same counts are one."""


@dataclass(frozen=True)
class Count:
    value: float
    unit: str
    direction: Literal["lower", "higher", "neither"]
    version: int


def exact(match: Match, asked: Gated) -> Iterator[Finding]:
    """One finding, where BASE has the count."""
    base, head = (count(case, asked.gate) for case in (match.base, match.head))
    if base is not None:
        yield _one(match, asked, base, head)


def _one(match: Match, asked: Gated, base: Count, head: Count | None) -> Finding:
    relative = asked.gate.written == "relative"
    blank = replace(start(match, asked, "", base.unit, relative), base=base.value, test="exact")
    if head is None:
        return replace(blank, reasons=("HEAD does not measure it",))
    blank = replace(blank, head=head.value)
    bars = (*match.bars, *differing([("metric version", base.version, head.version), ("unit", base.unit, head.unit)]))
    if bars:
        return replace(blank, reasons=bars)
    gap = head.value - base.value
    largest = max(abs(head.value), abs(base.value))
    change = (gap / base.value if base.value else None) if relative else gap
    beyond = (
        abs(gap) > asked.threshold * (min(abs(head.value), abs(base.value)) if relative else 1) + ROUNDING * largest
    )
    return replace(
        blank,
        verdict=_verdict(gap, base.direction) if beyond else "unchanged",
        change=None if change is None else Estimate(change, change, change, 1, "exact"),
        n=1,
        units="count",
        reasons=("exactly the same",) if not gap else ("a count without noise",),
    )


def _verdict(gap: float, direction: str) -> Verdict:
    return "improved" if (gap > 0) == (direction == "higher") else "regressed"


def count(case: Case, gate: Gate) -> Count | None:
    """Bytes are summed over roles and parts; of a cache, which may be filled in several ways, the most counts."""
    found = case.found(gate.metric)
    if not found:
        return None
    if gate.name == "bits_per_weight":
        return _bits(case, found)
    totals = [sum(each.values) for each in found]
    return _as_count(found[0], max(totals) if gate.name == "kv_cache" else sum(totals))


def _bits(case: Case, stored: Sequence[Measurement]) -> Count | None:
    linear = [each for each in stored if each.protocol.get("role") == "linear"]
    parameters = sum(sum(m.values) for m in case.found("parameters") if m.protocol.get("role") == "linear")
    if not linear or not parameters:
        return None
    return replace(_as_count(linear[0], 8 * sum(sum(each.values) for each in linear) / parameters), unit="bit")


def _as_count(measurement: Measurement, value: float) -> Count:
    return Count(value, measurement.unit, measurement.direction, measurement.version)
