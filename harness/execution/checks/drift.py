"""Finds suspect timings: the machine, or the times themselves, drifted while they were taken."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from harness.core.label import Argument, Label
from harness.core.record import Measurement, Moment
from harness.host.gpu import gpu_value

Of = Literal["run", "machine"]
_Finding = dict[str, Argument]
"""The arguments of a label: a reason and its figures."""

CLOCK_DROP = 0.1
"""Fraction by which the GPU's clock may drop during one timing: boost clocks vary by a few percent."""
OTHERS = 0.1
"""Fraction of the cores' time that other processes may take: an idle machine's services take a few percent at most."""
STEAL = 0.02
"""Fraction of the cores' time that a hypervisor may steal: it does so in bursts, which hit single steps."""
DRIFT = 0.1
"""Fraction by which the median of the later iterations may differ from that of the earlier ones in a steady state."""
MIN_ITERATIONS = 4
"""With fewer, each half is a single iteration."""
MIN_CORE_S = 1.0
"""Core time below which fractions are not judged: the kernel counts in hundredths of a second."""
SLOWDOWN_FAULTS = 0x08 | 0x20 | 0x40 | 0x80
"""NVML's clock reasons that are faults: hardware slowdown, thermal slowdown by software or hardware, power brake."""
PHASES = {"prefill_s": "prefill", "decode_step_s": "decode"}


def drift(
    moments: Sequence[Moment], measurements: Sequence[Measurement], of: Of = "run", warm: bool = True
) -> tuple[Label, ...]:
    """A label for each reason why the timings between these moments are suspect; none if they are not.

    ``of`` is what was timed: a run's workload, or the machine itself. Moments come in pairs, before and after the
    timing of one point of the grid. The device is ``warm`` at both, or else its clock says nothing at the first.
    Values that a state lacks are not judged.
    """
    pairs = [(one.state, other.state) for one, other in zip(moments[::2], moments[1::2], strict=True)]
    findings = [*_clock_findings(pairs, warm), *_process_findings(moments)]
    if moments:
        findings += _core_findings(moments[0].state, moments[-1].state)
    findings += _time_findings(measurements)
    once = [each for number, each in enumerate(findings) if each not in findings[:number]]
    return tuple(Label("suspect", {"of": of, **each}) for each in once)


def _clock_findings(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], warm: bool) -> Iterator[_Finding]:
    for before, after in (each for pair in pairs for each in zip(*map(_of_each_gpu, pair), strict=False)):
        clocks = before.get("gpu_sm_clock_mhz"), after.get("gpu_sm_clock_mhz")
        if warm and clocks[0] and clocks[1] and clocks[1] < (1 - CLOCK_DROP) * clocks[0]:
            yield {"reason": "gpu_clock_fell", "limit": CLOCK_DROP}
        if any(int(state.get("gpu_slowdown_reasons", 0)) & SLOWDOWN_FAULTS for state in (before, after)):
            yield {"reason": "gpu_held_down"}
        if _increased(before, after, "gpu_thermal_violation_s"):
            yield {"reason": "gpu_heat"}


def _process_findings(moments: Sequence[Moment]) -> Iterator[_Finding]:
    """Where the driver does not list the run's own processes, one of those that it lists is taken for it."""
    states = [state for moment in moments for state in _of_each_gpu(moment.state)]
    if any(state.get("gpu_other_processes", state.get("gpu_processes", 1) - 1) > 0 for state in states):
        yield {"reason": "gpu_shared"}


def _of_each_gpu(state: Mapping[str, float]) -> Iterator[Mapping[str, float]]:
    """The values of each GPU by the names of the first one's."""
    yield state
    for index in itertools.count(1):
        suffix = gpu_value("", index)
        own = {name.removesuffix(suffix): value for name, value in state.items() if name.endswith(suffix)}
        if not own:
            return
        yield own


def _core_findings(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[_Finding]:
    if _increased(before, after, "cpu_throttle_count"):
        yield {"reason": "cpu_heat"}
    spent = {name: _difference(before, after, f"cpu_{name}_s") for name in ("total", "busy", "own", "steal")}
    total, busy, own, steal = spent.values()
    if total is None or busy is None or own is None or steal is None or total < MIN_CORE_S:
        return
    if busy - steal - own > OTHERS * total:
        yield {"reason": "cpu_shared", "limit": OTHERS}
    if steal > STEAL * total:
        yield {"reason": "cpu_steal", "limit": STEAL}


def _time_findings(measurements: Sequence[Measurement]) -> Iterator[_Finding]:
    for measured in measurements:
        phase = PHASES.get(measured.metric)
        if phase is not None and _drifts(measured):
            point = {name: measured.protocol[name] for name in ("batch_size", "prompt_tokens")}
            yield {"reason": "times_drift", "phase": phase, "limit": DRIFT, **point}


def _drifts(measured: Measurement) -> bool:
    """Whether the medians of the two halves of the iterations differ, and their ranges do not overlap."""
    timed = zip(measured.cluster_ids, measured.values, strict=True)
    medians = [
        float(np.median([value for _, value in group])) for _, group in itertools.groupby(timed, lambda each: each[0])
    ]
    half = len(medians) // 2
    if len(medians) < MIN_ITERATIONS:
        return False
    early, late = medians[:half], medians[-half:]
    apart = min(late) > max(early) or max(late) < min(early)
    return apart and bool(abs(np.median(late) / np.median(early) - 1) > DRIFT)


def _increased(before: Mapping[str, float], after: Mapping[str, float], name: str) -> bool:
    return (_difference(before, after, name) or 0) > 0


def _difference(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float | None:
    return after[name] - before[name] if name in before and name in after else None
