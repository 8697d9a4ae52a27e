"""Whether what worked in BASE still works in HEAD."""

from __future__ import annotations

from dataclasses import replace

from harness.analysis.regression.cases import Case
from harness.analysis.regression.findings import RUNS, Finding
from harness.analysis.regression.matching import Match, differing, workload


def ending(match: Match) -> Finding | None:
    """A finding if a run failed on either side; None if all succeeded on both."""
    base, head = match.base, match.head
    if base.status == "ok" and len(head.well) == len(head.runs):
        return None
    blank = replace(_blank(head), base=_share(base), head=_share(head))
    if base.status == head.status == "ok":
        before = len(base.well) < len(base.runs)
        beside = "as in BASE" if before else "all of BASE's ended well"
        reason = f"{len(head.well)} of {len(head.runs)} repetitions ended well; {beside}; {head.reason}"
        return replace(blank, verdict="inconclusive", reasons=(reason,), gated=not before)
    if base.status != "ok" and head.status != "ok":
        return replace(blank, verdict="unchanged", gated=False, reasons=(f"fails on both sides: {head.reason}",))
    if head.status == "ok":
        return replace(blank, verdict="improved", reasons=(f"failed in BASE: {base.reason}",))
    bars = (*match.bars, *(() if match.one_machine else ("hardware differs",)), *_tighter(base, head))
    return replace(
        blank,
        verdict="incomparable" if bars else "regressed",
        reasons=(f"worked in BASE, {head.status.replace('_', ' ')} in HEAD: {head.reason}", *bars),
    )


def gone(case: Case) -> Finding:
    """Measured by BASE but not tried by HEAD: not a pass, unless it had failed before."""
    why = "gone from HEAD" if case.well else f"gone from HEAD; it failed in BASE: {case.reason}"
    return replace(_blank(case), base=_share(case), gated=bool(case.well), reasons=(why,))


def title(case: Case) -> str:
    spec = case.spec
    return f"{spec.subject}: {asked(case)}"


def asked(case: Case) -> str:
    """The run that a finding refers to."""
    spec = case.spec
    return f"{spec.kind} {workload(spec)}".strip()


def _tighter(base: Case, head: Case) -> tuple[str, ...]:
    """The limit that ended a run, if BASE had a different one."""
    old, new = base.spec.limits, head.spec.limits
    limits = {
        "timeout": ("time limit in s", old.time_s, new.time_s),
        "out_of_memory": ("memory limit in bytes", old.memory_bytes, new.memory_bytes),
    }
    return differing([limits[head.status]]) if head.status in limits else ()


def _blank(case: Case) -> Finding:
    spec = case.spec
    return Finding(
        case_id=spec.case_id,
        model=spec.model.label,
        method=spec.method.label,
        engine=spec.engine_label,
        metric=RUNS,
        where=asked(case),
        verdict="incomparable",
        gated=True,
        unit="ended well",
    )


def _share(case: Case) -> float:
    return len(case.well) / len(case.runs)
