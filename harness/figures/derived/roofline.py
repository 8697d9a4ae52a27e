"""How close a speed comes to the machine's limit: the bound of a step, and the measured time beside it.

The roofline model (Williams, Waterman, Patterson, Communications of the ACM 52, 2009): a step that reads B bytes and
performs W operations takes at least max(B / bandwidth, W / rate) seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.core.record import Measurement, RunRecord
from harness.figures.derived.speeds import point_of
from harness.figures.table import GridPoint, Rates, Speed, SpeedBound
from harness.stats.estimate import transformed

WIDER: Mapping[str, str] = {"bfloat16": "float32", "float16": "float32"}
"""Lossless conversions: a dtype is never multiplied more slowly than the wider one that it converts to."""


@dataclass(frozen=True)
class _Traffic:
    """The minimum work of a step, from the records: bytes to read, operations by dtype, and the cost of unpacking."""

    read_bytes: float
    dequantize_bytes: float
    operations: Mapping[str, float]


def rates(machine: RunRecord) -> Rates | None:
    """The machine's best measured rates; None if the run measured nothing."""
    measured = machine.outcome.measurements
    bandwidths: dict[int, float] = {}
    products: dict[str, float] = {}
    for entry in measured:
        if entry.metric == "bandwidth_byte_per_s" and entry.values:
            size = int(entry.protocol["working_set_bytes"] or 0)
            bandwidths[size] = max(bandwidths.get(size, 0.0), *entry.values)
        if entry.metric == "matmul_op_per_s" and entry.values:
            dtype = str(entry.protocol["dtype"])
            products[dtype] = max(products.get(dtype, 0.0), *entry.values)
    return Rates(tuple(sorted(bandwidths.items())), tuple(products.items())) if bandwidths and products else None


def bandwidth_byte_per_s(found: Rates, read_bytes: float) -> float:
    """The best bandwidth at which that many bytes can be read repeatedly.

    Bytes that fit a cache are read from there, so this is the best over the working sets from the largest one that is
    no larger than the bytes. (Starting at the smallest one that is no smaller would ignore the part of the bytes that
    a cache still holds, and the result would not be a bound.)
    """
    held = [size for size, _ in found.bandwidth if size <= read_bytes]
    least = held[-1] if held else found.bandwidth[0][0]
    return max(bandwidth for size, bandwidth in found.bandwidth if size >= least)


def rate_op_per_s(found: Rates, dtype: str) -> float:
    """The rate of products of that dtype; for codes and dtypes that were not measured, the machine's highest rate."""
    measured = dict(found.matmul)
    if dtype not in measured:
        return max(measured.values())
    return max(measured[dtype], measured.get(WIDER.get(dtype, ""), 0.0))


def bounds(runs: Sequence[RunRecord], speeds: Iterable[Speed], found: Rates | None) -> tuple[SpeedBound, ...]:
    """The bounds of prefill and decode at each point for which traffic was counted, if the machine was measured.

    ``found`` are the rates of one GPU. Several that compute at once share the work, so each takes its part of the time.
    """
    if found is None:
        return ()
    gpus = max((run.spec.gpus_at_once for run in runs), default=1)
    made = []
    for speed in speeds:
        for phase in ("prefill", "decode"):
            traffic = _traffic(runs, phase, speed.point)
            if traffic is not None:
                made.append(_bound(traffic, phase, speed, found, gpus))
    return tuple(made)


def machine_of(run: RunRecord | None, machines: Sequence[RunRecord]) -> RunRecord | None:
    """The measurement of the machine on which the run took place.

    That is one from the same session and node, otherwise from the same session (its nodes are of one hardware class),
    otherwise the newest. A measurement by an older protocol version counts only if there is no other.
    """
    if run is None:
        return None
    alike = [each for each in machines if each.status == "ok" and _place(each) == _place(run)]
    latest = max((_version(each) for each in alike), default=0)
    alike = [each for each in alike if _version(each) == latest]
    own = [each for each in alike if each.session == run.session]
    same = [each for each in own if each.node == run.node]
    return next(reversed(same or own or alike), None)


def _bound(traffic: _Traffic, phase: str, speed: Speed, found: Rates, gpus: int) -> SpeedBound:
    point = speed.point
    each_reads = traffic.read_bytes / gpus
    reading_s = each_reads / bandwidth_byte_per_s(found, each_reads)
    multiplying_s = sum(count / gpus / rate_op_per_s(found, dtype) for dtype, count in traffic.operations.items())
    tokens = point.batch_size * (point.prompt_tokens if phase == "prefill" else 1)
    tok_per_s = tokens / max(reading_s, multiplying_s)
    measured = speed.prefill_tok_per_s if phase == "prefill" else speed.decode_tok_per_s
    return SpeedBound(
        point,
        phase,
        tok_per_s,
        "bytes" if reading_s >= multiplying_s else "operations",
        transformed(measured, lambda rate: rate / tok_per_s) if measured else None,
        traffic.read_bytes,
        traffic.dequantize_bytes,
        sum(traffic.operations.values()),
    )


def _traffic(runs: Sequence[RunRecord], phase: str, point: GridPoint) -> _Traffic | None:
    """From the first of several runs of one variant that counted it: all count the same."""
    for run in runs:
        read = _of(run, f"{phase}_read_bytes", point)
        if read:
            return _Traffic(
                sum(entry.values[0] for entry in read),
                sum(entry.values[0] for entry in _of(run, f"{phase}_dequantize_bytes", point)),
                {str(entry.protocol["dtype"]): entry.values[0] for entry in _of(run, f"{phase}_operations", point)},
            )
    return None


def _of(run: RunRecord, metric: str, point: GridPoint) -> list[Measurement]:
    return [entry for entry in run.outcome.measured(metric) if entry.values and point_of(entry) == point]


def _version(machine: RunRecord) -> int:
    return max((entry.version for entry in machine.outcome.measurements), default=0)


def _place(run: RunRecord) -> tuple[object, ...]:
    """The hardware, device, threads and torch version of a run."""
    software = run.outcome.before.software if run.outcome.before else {}
    return run.spec.hardware, run.spec.device, run.spec.job.conditions.threads, software.get("torch")
