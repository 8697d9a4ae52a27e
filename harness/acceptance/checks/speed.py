"""The machine's own speeds beside the data sheet, decoding beside its bound, and energy beside power."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

from harness.acceptance import recipes
from harness.acceptance.bench import Bench, CheckResult, failed, judged, skipped, suspicion
from harness.acceptance.datasheet import HALF, data_sheet
from harness.core.job import MeasurePerformance
from harness.core.record import RunRecord
from harness.figures.derived.roofline import rates
from harness.figures.table import Rates
from harness.host.gpu import gpu

LEAST_BANDWIDTH, LEAST_RATE = 0.7, 0.5
"""Fractions of the data sheet that a healthy GPU reaches: its power limit holds products down more than reading."""
MOST = 1.05
"""A fraction of the data sheet above which the measurement is wrong."""
LEAST_OF_BOUND = 0.6
"""Fraction of its bound that compiled decoding at batch 1 reaches on a GPU."""
ENERGY_TOLERANCE = 0.15
SAMPLE_S = 0.05
WINDOW_S = 0.9
"""The end of the energy phase in which the GPU only generates, and for which an averaging power sensor is steady."""
MARGIN_S = 0.1


def own_speeds(bench: Bench) -> Iterator[CheckResult]:
    """Bandwidth and products per second are those of the data sheet, within what its limits of power allow."""
    about = "own speeds"
    machine = bench.own_speeds
    if machine is None or machine.status != "ok":
        yield bench.fault(about, machine) if machine else failed(about, "the machine was not measured")
        return
    found = rates(machine)
    if found is None:
        yield failed(about, "nothing was measured")
        return
    measured = _listed(found)
    name = bench.preflight.name if bench.on_gpu and bench.preflight else ""
    sheet = data_sheet(name) if name else None
    if sheet is None:
        yield skipped(
            about, f"no data sheet of this {'GPU' if bench.on_gpu else 'processor'} is known here: {measured}"
        )
        return
    if suspect := suspicion(machine):
        yield skipped(about, f"{suspect}: {measured}")
        return
    reached = {dtype: dict(found.matmul).get(dtype, 0.0) / rate for dtype, rate in sheet.op_per_s.items()}
    bandwidth = found.bandwidth[-1][1] / sheet.bandwidth_byte_per_s
    slow = bandwidth < LEAST_BANDWIDTH or reached[HALF] < LEAST_RATE
    fast = bandwidth > MOST or max(reached.values()) > MOST + sheet.clock_margin
    shares = ", ".join([f"bandwidth {bandwidth:.0%}", *(f"{dtype} {share:.0%}" for dtype, share in reached.items())])
    yield judged(about, not slow and not fast, f"{shares} of the data sheet ({sheet.product}): {measured}")


def decode(bench: Bench) -> Iterator[CheckResult]:
    """Decoding comes close to its bound where it is compiled, its energy is its power, and nothing exceeds a bound."""
    with _power(bench.on_gpu) as samples:
        records = bench.measure(recipes.decode(bench.on_gpu))
    (record,) = [each for each in records if isinstance(each.spec.job, MeasurePerformance)]
    yield _reaches(bench, record)
    yield _energy(bench, record, samples)


def bounds(bench: Bench) -> Iterator[CheckResult]:
    """No speed that was measured so far is above its bound."""
    about = "nothing above its bound"
    shares = {
        f"{row.label} {bound.phase}, {bound.point.label}": bound.share.value
        for row in bench.rows()
        if row.evidence is None or suspicion(*row.evidence.all) is None
        for bound in row.bounds
        if bound.share is not None
    }
    if suspect := suspicion(bench.own_speeds):
        yield skipped(about, suspect)
        return
    if not shares:
        yield skipped(about, "no speed was measured undisturbed")
        return
    above = [f"{what} at {share:.0%}" for what, share in shares.items() if share > 1]
    highest = f"{len(shares)} speeds, the highest at {max(shares.values()):.0%} of its bound"
    yield judged(about, not above, ", ".join(above) or highest)


def _reaches(bench: Bench, record: RunRecord) -> CheckResult:
    about = "decode of its bound"
    if record.status != "ok":
        return bench.fault(about, record)
    shares = [
        bound.share.value
        for row in bench.rows()
        if row.evidence and record in row.evidence.performance
        for bound in row.bounds
        if bound.phase == "decode" and bound.share
    ]
    if not shares:
        return failed(about, "it has no bound: the machine was not measured")
    reached = f"{shares[0]:.0%} at batch 1, {'compiled' if bench.on_gpu else 'layer by layer'}"
    if not bench.on_gpu:
        return skipped(about, f"{reached}: only a GPU's compiled decoding has a level to reach")
    if suspect := suspicion(record, bench.own_speeds):
        return skipped(about, f"{reached}, but {suspect}")
    return judged(about, LEAST_OF_BOUND <= shares[0] <= 1, f"{reached}; {LEAST_OF_BOUND:.0%} to 100% are expected")


def _energy(bench: Bench, record: RunRecord, samples: _Samples) -> CheckResult:
    """Joules per token by the energy counter, beside the mean power at the end of the same phase over the speed."""
    about = "energy beside power"
    if record.status != "ok":
        return bench.fault(about, record)
    counted = record.find("decode_j_per_tok", idle="included", source="NVML" if bench.on_gpu else "RAPL")
    if counted is None:
        missing = [fact.sentence for fact in record.outcome.facts if fact.code == "energy_not_measured"]
        return skipped(about, "; ".join(missing) or "no energy was measured")
    began_s = bench.began_s(record, "energy")
    lasted_s = next((phase.wall_s for phase in record.outcome.phases if phase.name == "energy"), None)
    ended_s = None if began_s is None or lasted_s is None else began_s + lasted_s - MARGIN_S
    power_w = [] if ended_s is None else [watt for at_s, watt in samples.read if ended_s - WINDOW_S <= at_s <= ended_s]
    speed = _decode_tok_per_s(record)
    if not power_w or speed is None:
        return skipped(about, f"{counted.values[0]:.3g} J a token; no power was read beside it")
    expected = fmean(power_w) / speed
    apart = counted.values[0] / expected - 1
    reason = (
        f"{counted.values[0]:.3g} J a token by the counter, {expected:.3g} by {fmean(power_w):.0f} W over "
        f"{speed:.0f} tok/s ({apart:+.0%})"
    )
    if suspect := suspicion(record):
        return skipped(about, f"{reason}, but {suspect}")
    return judged(about, abs(apart) <= ENERGY_TOLERANCE, reason)


def _decode_tok_per_s(record: RunRecord) -> float | None:
    """From the mean of all steps, as energy is counted over all of them."""
    steps = record.find("decode_step_s")
    return None if steps is None or not steps.values else 1 / fmean(steps.values)


def _listed(found: Rates) -> str:
    products = ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in found.matmul)
    return f"{found.bandwidth[-1][1] / 1e9:.0f} GB/s; 10¹² operations/s: {products}"


@dataclass
class _Samples:
    """Power in watts with its moment of ``time.monotonic``."""

    read: list[tuple[float, float]] = field(default_factory=list)


@contextmanager
def _power(on_gpu: bool) -> Iterator[_Samples]:
    """Reads the GPU's power in a thread; a processor has no sensor of it."""
    samples, ended = _Samples(), threading.Event()
    with gpu() as device:
        if not on_gpu or device is None:
            yield samples
            return

        def sample() -> None:
            while not ended.wait(SAMPLE_S):
                watt = device.power_w()
                if watt is not None:
                    samples.read.append((time.monotonic(), watt))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield samples
        finally:
            ended.set()
            thread.join()
