"""Metrics without noise: what is stored, and how much of it is quantized. A machine changes none of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.analysis.regression.cases import Case
from harness.analysis.regression.findings import Finding, Verdict
from harness.analysis.regression.matching import Match, differing
from harness.analysis.regression.pending import Gated, start
from harness.core.gates import Gate
from harness.core.record import Measurement
from harness.figures.derived.footprint import cache_of_most_tokens
from harness.stats.estimate import Estimate

ROUNDING = 1e-12
"""Relative difference below which two ratios of the same counts are one."""


@dataclass(frozen=True)
class Count:
    value: float
    unit: str
    direction: Literal["lower", "higher", "neither"]
    version: int


def exact(match: Match, asked: Gated) -> Iterator[Finding]:
    """One finding, where either side has the count."""
    base, head = (count(case, asked.gate) for case in (match.base, match.head))
    unlike: tuple[str, ...] = ()
    if asked.gate.name == "kv_cache" and base and head:
        base, head, unlike = _alike(match.base, match.head, base, head)
    one = base or head
    if one is None:
        return
    blank = start(match, asked, "", one.unit, asked.gate.written == "relative")
    blank = replace(blank, base=_value(base), head=_value(head), test="exact")
    if base is not None and head is not None:
        yield replace(blank, reasons=unlike) if unlike else _one(match, asked, blank, base, head)
    else:
        yield replace(blank, reasons=(f"{'HEAD' if base else 'BASE'} does not measure it",))


def _value(found: Count | None) -> float | None:
    return None if found is None else found.value


def _one(match: Match, asked: Gated, blank: Finding, base: Count, head: Count) -> Finding:
    relative = blank.relative
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
    """Bytes are summed over roles and parts; a cache's are those of the most tokens, as reports show them."""
    found = case.found(gate.metric)
    if not found:
        return None
    if gate.name == "bits_per_weight":
        return _bits(case, found)
    if gate.name == "kv_cache":
        return _cache(found)
    return _as_count(found[0], sum(sum(each.values) for each in found))


def _cache(found: Sequence[Measurement]) -> Count:
    chosen = cache_of_most_tokens(found)
    return _as_count(chosen, chosen.values[0])


def _alike(base: Case, head: Case, theirs: Count, ours: Count) -> tuple[Count, Count, tuple[str, ...]]:
    """The cache at the most tokens that both sides filled it with; a reason where those have nothing in common."""
    sides = [{_filling(m): m for m in case.found("kv_cache_bytes_per_token")} for case in (base, head)]
    both = sides[0].keys() & sides[1].keys()
    if not both:
        return theirs, ours, ("no point of the grid that both measure",)
    one, other = (_cache([m for filling, m in side.items() if filling in both]) for side in sides)
    return one, other, ()


def _filling(measurement: Measurement) -> tuple[str, ...]:
    return tuple(str(measurement.protocol.get(name)) for name in ("after", "batch_size", "prompt_tokens", "tokens"))


def _bits(case: Case, stored: Sequence[Measurement]) -> Count | None:
    linear = [each for each in stored if each.protocol.get("role") == "linear"]
    parameters = sum(sum(m.values) for m in case.found("parameters") if m.protocol.get("role") == "linear")
    if not linear or not parameters:
        return None
    return replace(_as_count(linear[0], 8 * sum(sum(each.values) for each in linear) / parameters), unit="bit")


def _as_count(measurement: Measurement, value: float) -> Count:
    return Count(value, measurement.unit, measurement.direction, measurement.version)
