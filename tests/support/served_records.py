"""Records of servers under load whose requests' times are planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from run_specs import NONE, UNDER_LOAD, changed, run_spec

from harness.core.model import MethodRef
from harness.core.record import Failure, Measurement, Outcome, RunRecord, Status
from harness.core.workload import ServingWorkload
from harness.metrics.serving import largest, measure
from harness.stats.capacity import largest_level
from harness.stats.serving import Answered, meets

WORKLOAD = replace(UNDER_LOAD, levels=(8.0, 16.0, 32.0))
RTN = MethodRef("rtn", 1, {"bits": 4}, "rtn bits=4", "on_load")
Times = Callable[[float, int, int], tuple[float, float]]
"""Time to the first token and between tokens (s) at a level, of a request and a repetition."""


def served_record(
    method: MethodRef,
    repetition: int,
    times: Times,
    workload: ServingWorkload = WORKLOAD,
    session: str = "one",
    engine: str = "transformers",
) -> RunRecord:
    """One process: see ``served``."""
    spec = changed(run_spec("serve", method=method, serving=workload, engine=engine), repetition=repetition, lock="")
    return RunRecord(spec, served(repetition, times, workload), session, 1, f"2026-11-29T10:{repetition:02}:00Z", 1.0)


def served(repetition: int, times: Times, workload: ServingWorkload = WORKLOAD) -> Outcome:
    """What one process measures, whose requests are sent a second apart, and answered with the planted times."""
    levels = {level: answers(level, repetition, times, workload) for level in workload.levels}
    return Outcome("ok", measurements=tuple(measurements(levels, workload)))


def answers(level: float, repetition: int, times: Times, workload: ServingWorkload) -> list[Answered]:
    made = []
    for number in range(workload.requests or 0):
        ttft_s, gap_s = times(level, number, repetition)
        gaps = (gap_s,) * (workload.new_tokens - 1)
        ends = {"ttft_s": ttft_s, "e2e_s": ttft_s + sum(gaps), "gaps_s": gaps, "output_tokens": workload.new_tokens}
        made.append(Answered(f"r{number:05d}", float(number), prompt_tokens=32, **ends))  # type: ignore[arg-type]
    return made


def measurements(levels: Mapping[float, Sequence[Answered]], workload: ServingWorkload) -> list[Measurement]:
    protocol = {**workload.protocol, "client": "planted", "schedule": "0" * 12, "requests": workload.requests}
    found = [each for level, own in levels.items() for each in measure(own, workload.slo, {**protocol, "level": level})]
    if workload.slo is not None:
        met = [meets(own, workload.slo) for own in levels.values()]
        held = largest_level(list(levels), met, workload.slo.share)
        found.append(largest(held, workload.unit, workload.slo, {**workload.protocol, "client": "planted"}))
    return found


def baseline(repetition: int, times: Times, workload: ServingWorkload = WORKLOAD) -> RunRecord:
    return served_record(NONE, repetition, times, workload)


def failed(record: RunRecord) -> RunRecord:
    """The same run, whose server ended."""
    return replace(record, outcome=Outcome("failed", None))


def ended_above(record: RunRecord, level: float, status: Status = "failed", error: str = "RunError") -> RunRecord:
    """The same run, which ended at the next level: what it had measured, and the largest load of that."""
    kept = [each for each in record.outcome.measurements if float(each.protocol.get("level") or 0) <= level]
    held = [replace(each, values=(min(each.values[0], level),)) for each in kept if "level" not in each.protocol]
    measured = (*(each for each in kept if "level" in each.protocol), *held)
    return replace(record, outcome=Outcome(status, Failure("serve", error, "too much for it"), measured))
