"""A finding before its verdict: tests are judged together after all have been computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from harness.analysis.regression.findings import Finding, Verdict
from harness.analysis.regression.matching import Match
from harness.figures.figure import Figure
from harness.figures.gate import shown
from harness.plugins import gates
from harness.stats.comparison import Comparison
from harness.stats.estimate import Estimate, exponential


@dataclass(frozen=True)
class Gated:
    """A figure with the threshold in force, and whether a failure counts."""

    figure: Figure[Any]
    threshold: float
    in_force: bool

    @property
    def name(self) -> str:
        return self.figure.name

    @property
    def relative(self) -> bool:
        """Whether the threshold is a fraction of BASE's figure."""
        return self.figure.gate is not None and self.figure.gate.written == "relative"


@dataclass(frozen=True)
class Pending:
    """``comparison`` is HEAD compared with BASE. ``one_machine``: the machine cannot explain a difference."""

    finding: Finding
    comparison: Comparison
    one_machine: bool


def start(match: Match, asked: Gated, where: str, unit: str, relative: bool) -> Finding:
    """What is known of a finding before anything is compared."""
    spec = match.head.spec
    return Finding(
        case_id=spec.case_id,
        model=spec.model.label,
        method=spec.method.label,
        engine=spec.engine_label,
        metric=asked.name,
        where=where,
        verdict="incomparable",
        gated=asked.in_force,
        unit=unit,
        relative=relative,
        threshold=asked.threshold,
    )


def settled(pending: Pending) -> Finding:
    """The finding with its verdict, from a comparison that was judged together with all others.

    A regression is a real difference beyond the threshold. "Unchanged" requires an interval within it.
    """
    found = pending.comparison
    verdict = _verdict(found)
    reasons = [*_reasons(pending), *found.notes]
    if verdict in ("improved", "regressed") and not pending.one_machine:
        reasons = ["hardware differs: the difference may be the machine's", *reasons]
        verdict = "incomparable"
    undecided = verdict == "inconclusive"
    in_terms = _shown(pending)
    detectable = found.detectable if undecided else None
    return replace(
        pending.finding,
        verdict=verdict,
        change=_change(pending, in_terms),
        test=found.test,
        p=found.adjusted_p,
        n=found.effect.n,
        units=found.units,
        detectable=None if detectable is None else abs(in_terms(detectable)),
        needed=found.units_needed if undecided else None,
        reasons=(*reasons, *pending.finding.reasons),
    )


def _verdict(found: Comparison) -> Verdict:
    if found.equivalent:
        return "unchanged"
    if not found.different or not found.agrees or abs(found.effect.value) <= found.margin:
        return "inconclusive"
    return "improved" if (found.effect.value > 0) == (found.better == "higher") else "regressed"


def _reasons(pending: Pending) -> list[str]:
    """The reasons for the verdict."""
    found, finding = pending.comparison, pending.finding
    limit = shown(gates()[finding.metric], finding.threshold or 0.0)
    reasons = [found.finding]
    if found.equivalent:
        reasons.append(f"it lies within ±{limit}")
    elif found.p is not None and _verdict(found) == "inconclusive":
        reasons.append(f"it may be beyond ±{limit}")
    return reasons


def _shown(pending: Pending) -> Callable[[float], float]:
    """Converts from the comparison's own terms, logarithms if the change is relative, to those of the finding."""
    if not pending.finding.relative:
        return lambda effect: effect
    return lambda effect: exponential(effect) - 1


def _change(pending: Pending, shown: Callable[[float], float]) -> Estimate | None:
    """None if no number says it: a side has no figure, or the ratio is one to zero or to an overflow."""
    effect, finding = pending.comparison.effect, pending.finding
    value = shown(effect.value)
    if finding.base is None or finding.head is None or math.isinf(effect.value) or math.isinf(value):
        return None
    low, high = (None if end is None or math.isinf(end) else shown(end) for end in (effect.low, effect.high))
    return replace(effect, value=value, low=low, high=high)
