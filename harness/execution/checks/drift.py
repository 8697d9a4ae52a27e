"""Why timings are suspect: what drifted in the machine, or in the times themselves, while a run was timed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from harness.core.label import Argument, Label
from harness.core.record import Measurement, Moment

Of = Literal["run", "machine"]
_Finding = dict[str, Argument]
"""The arguments of a label: a reason, and what that reason has."""

CLOCK_FALL = 0.1
"""Part by which the GPU's clock may fall while one thing is timed: boost clocks breathe by a few percent."""
OTHERS = 0.1
"""Part of the cores' time that other processes may take: a quiet machine's services take a few percent at most."""
STEAL = 0.02
"""Part of the cores' time that a hypervisor may give away: it comes in bursts, which hit single steps."""
DRIFT = 0.1
"""Part by which the later iterations' median may differ from the earlier ones': more is no steady state."""
FEWEST_ITERATIONS = 4
"""Halves of fewer are single iterations."""
LEAST_CORE_S = 1.0
"""Time of one core below which nothing is said of shares: the kernel counts in hundredths of a second."""
HELD_DOWN = 0x08 | 0x20 | 0x40 | 0x80
"""NVML's reasons that are faults: hardware slowdown, thermal slowdown by software, by hardware, power brake."""
PHASES = {"prefill_s": "prefill", "decode_step_s": "decode"}


def drift(moments: Sequence[Moment], measurements: Sequence[Measurement], of: Of = "run") -> tuple[Label, ...]:
    """Labels that say why the timings between these moments are suspect; none where nothing was found.

    ``of`` says what was timed: a run's workload, or the machine itself.

    Moments come in pairs, before and after what was timed of one point of the grid, the device being hot at both.
    What a state does not tell is not judged.
    """
    pairs = [(one.state, other.state) for one, other in zip(moments[::2], moments[1::2], strict=True)]
    found = [*_of_clocks(pairs), *_of_processes(moments)]
    if moments:
        found += _of_cores(moments[0].state, moments[-1].state)
    found += _of_times(measurements)
    once = [each for number, each in enumerate(found) if each not in found[:number]]
    return tuple(Label("suspect", {"of": of, **each}) for each in once)


def _of_clocks(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> Iterator[_Finding]:
    for before, after in pairs:
        clocks = before.get("gpu_sm_clock_mhz"), after.get("gpu_sm_clock_mhz")
        if clocks[0] and clocks[1] and clocks[1] < (1 - CLOCK_FALL) * clocks[0]:
            yield {"reason": "gpu_clock_fell", "limit": CLOCK_FALL}
        if any(int(state.get("gpu_slowdown_reasons", 0)) & HELD_DOWN for state in (before, after)):
            yield {"reason": "gpu_held_down"}
        if _grew(before, after, "gpu_thermal_violation_s"):
            yield {"reason": "gpu_heat"}


def _of_processes(moments: Sequence[Moment]) -> Iterator[_Finding]:
    if any(moment.state.get("gpu_processes", 0) > 1 for moment in moments):
        yield {"reason": "gpu_shared"}


def _of_cores(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[_Finding]:
    if _grew(before, after, "cpu_throttle_count"):
        yield {"reason": "cpu_heat"}
    spent = {name: _difference(before, after, f"cpu_{name}_s") for name in ("total", "busy", "own", "steal")}
    total, busy, own, steal = spent.values()
    if total is None or busy is None or own is None or steal is None or total < LEAST_CORE_S:
        return
    if busy - steal - own > OTHERS * total:
        yield {"reason": "cpu_shared", "limit": OTHERS}
    if steal > STEAL * total:
        yield {"reason": "cpu_steal", "limit": STEAL}


def _of_times(measurements: Sequence[Measurement]) -> Iterator[_Finding]:
    for measured in measurements:
        phase = PHASES.get(measured.metric)
        if phase is not None and _drifts(measured):
            point = {name: measured.protocol[name] for name in ("batch_size", "prompt_tokens")}
            yield {"reason": "times_drift", "phase": phase, "limit": DRIFT, **point}


def _drifts(measured: Measurement) -> bool:
    """Whether the medians of the two halves of the iterations lie apart, and no iteration of one within the other."""
    timed = zip(measured.cluster_ids, measured.values, strict=True)
    medians = [
        float(np.median([value for _, value in group])) for _, group in itertools.groupby(timed, lambda each: each[0])
    ]
    half = len(medians) // 2
    if len(medians) < FEWEST_ITERATIONS:
        return False
    early, late = medians[:half], medians[-half:]
    apart = min(late) > max(early) or max(late) < min(early)
    return apart and bool(abs(np.median(late) / np.median(early) - 1) > DRIFT)


def _grew(before: Mapping[str, float], after: Mapping[str, float], name: str) -> bool:
    return (_difference(before, after, name) or 0) > 0


def _difference(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float | None:
    return after[name] - before[name] if name in before and name in after else None
