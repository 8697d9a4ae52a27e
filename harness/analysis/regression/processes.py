"""Metrics that differ from process to process: speeds, energy, peak memory. A process is the unit of evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.analysis.regression.cases import Case
from harness.analysis.regression.findings import Finding
from harness.analysis.regression.matching import Match, differing
from harness.analysis.regression.pending import Gated, Pending, start
from harness.analysis.rule import compare_speeds
from harness.analysis.speeds import point_of
from harness.record import Measurement, RunRecord
from harness.spec import Scalar

Key = tuple[str, ...]
Process = Mapping[Key, Measurement]
POINT = ("batch_size", "prompt_tokens", "new_tokens", "decode_mode")
SOURCES = ("cuda allocated", "VmHWM", "VmHWM since the start", "ru_maxrss since the start")
"""Of a peak: what a user pays for first."""
NOT_OF_USE = ("quantize", "quantize_on_load")
"""Phases whose peak is the price of making a variant, not of using it."""


@dataclass(frozen=True)
class _Figure:
    """How one number is made of a process's measurement, and whether less of it is better."""

    unit: str
    of: Callable[[Measurement], float]
    less_is_better: bool
    timed: bool


FIGURES: Mapping[str, _Figure] = {
    "prefill_s": _Figure("tok/s", lambda m: _tokens(m) / _middle(m), False, True),
    "decode_step_s": _Figure("tok/s", lambda m: point_of(m).batch_size / _middle(m), False, True),
    "prefill_j_per_tok": _Figure("J/token", lambda m: _middle(m), True, True),
    "decode_j_per_tok": _Figure("J/token", lambda m: _middle(m), True, True),
    "peak_memory_bytes": _Figure("byte", lambda m: max(m.values), True, False),
}


def processes(match: Match, asked: Gated, alpha: float) -> Iterator[Finding | Pending]:
    """One finding for each point of the grid that BASE has; peaks are taken over all points that both have."""
    if match.base.spec.kind != "performance":
        return
    base, head = (measured(case, asked.gate.metric) for case in (match.base, match.head))
    keys = list(dict.fromkeys(key for process in base for key in process))
    if asked.gate.metric == "peak_memory_bytes":
        yield from _peak(match, asked, alpha, base, head)
        return
    for key in keys:
        theirs, ours = ([process[key] for process in side if key in process] for side in (base, head))
        yield _one(match, asked, alpha, _where(theirs[0]), theirs, ours)


def _peak(
    match: Match, asked: Gated, alpha: float, base: Sequence[Process], head: Sequence[Process]
) -> Iterator[Finding | Pending]:
    """The highest peak of a process, of the one source that says most, over the phases and points of both sides."""
    source = next((name for name in SOURCES if any(name == key[0] for process in base for key in process)), None)
    if source is None:
        return
    shared = [{key for process in side for key in process if key[0] == source} for side in (base, head)]
    both = shared[0] & shared[1]
    highest = [
        [max((process[key] for key in both if key in process), key=lambda m: max(m.values)) for process in side]
        for side in ([process for process in side if both & process.keys()] for side in (base, head))
    ]
    alike = [[replace(each, protocol={"source": source}) for each in side] for side in highest]
    if both:
        yield _one(match, asked, alpha, source, *alike)
    else:
        yield replace(start(match, asked, source, "byte", True), reasons=("HEAD does not measure it",))


def _one(
    match: Match,
    asked: Gated,
    alpha: float,
    where: str,
    base: Sequence[Measurement],
    head: Sequence[Measurement],
) -> Finding | Pending:
    figure = FIGURES[asked.gate.metric]
    blank = start(match, asked, where, figure.unit, True)
    theirs, ours = ([figure.of(each) for each in side] for side in (base, head))
    blank = replace(blank, base=_typical(theirs), head=_typical(ours))
    suspects = _suspects(match) if figure.timed else ()
    if not (base and head):
        absent = "BASE" if not base else "HEAD"
        why = suspects or (f"{absent} does not measure it",)
        return replace(blank, verdict="inconclusive" if suspects else "incomparable", reasons=why)
    hardware = ("hardware", match.base.spec.hardware, match.head.spec.hardware)
    bars = (*match.bars, *differing([hardware]), *_unlike(base[-1], head[-1]))
    if bars:
        return replace(blank, reasons=bars)
    if match.same_runs:
        return replace(blank, verdict="unchanged", n=len(base), units="processes", reasons=("the same runs",))
    margin = math.log1p(asked.threshold)
    sign = -1 if figure.less_is_better else 1
    try:
        found = compare_speeds([each**sign for each in ours], [each**sign for each in theirs], margin, alpha)
    except (ValueError, ZeroDivisionError):
        return replace(blank, reasons=("a figure is zero or negative: no ratio can be made of it",))
    return Pending(replace(blank, reasons=suspects), found, True, figure.less_is_better)


def measured(case: Case, metric: str) -> list[Process]:
    """Of each process whose figures may be used, its measurements."""
    runs: tuple[RunRecord, ...] = case.trusted if FIGURES[metric].timed else case.well
    return [
        {_key(m): m for m in run.outcome.measurements if m.metric == metric and m.values and _counts(m)} for run in runs
    ]


def _counts(measurement: Measurement) -> bool:
    """Energy at rest is not the variant's; a peak of quantizing is not that of use."""
    said = measurement.protocol
    return said.get("idle") != "included" and said.get("phase") not in NOT_OF_USE


def _key(measurement: Measurement) -> Key:
    said: Mapping[str, Scalar] = measurement.protocol
    return tuple(str(said.get(name)) for name in ("source", "phase", *POINT))


def _unlike(base: Measurement, head: Measurement) -> tuple[str, ...]:
    keys = sorted(base.protocol.keys() | head.protocol.keys())
    return differing(
        [
            ("metric version", base.version, head.version),
            ("unit", base.unit, head.unit),
            *((name.replace("_", " "), base.protocol.get(name), head.protocol.get(name)) for name in keys),
        ]
    )


def _suspects(match: Match) -> tuple[str, ...]:
    """How many processes decide nothing, and why."""
    told = []
    for side, case in (("BASE", match.base), ("HEAD", match.head)):
        left_out = len(case.well) - len(case.trusted)
        if left_out:
            labels = {label for run in case.well for label in run.outcome.labels if run not in case.trusted}
            why = "; ".join(sorted(label for label in labels if label.startswith("suspect:")))
            told.append(f"{left_out} of {len(case.well)} processes of {side} are left out ({why})")
    return tuple(told)


def _where(measurement: Measurement) -> str:
    return point_of(measurement).label


def _tokens(measurement: Measurement) -> int:
    point = point_of(measurement)
    return point.batch_size * point.prompt_tokens


def _middle(measurement: Measurement) -> float:
    return float(np.median(measurement.values))


def _typical(values: Sequence[float]) -> float | None:
    """The geometric mean, of which the change is a ratio; of what is not positive the median."""
    if not values:
        return None
    return float(np.exp(np.mean(np.log(values)))) if min(values) > 0 else float(np.median(values))
