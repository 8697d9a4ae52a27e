"""What a load on a server measured: the times of each request, and rates, which are of all requests together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Literal

import numpy as np

from harness.core.column import ArrayColumn, numbers, texts
from harness.core.identity import Scalar
from harness.core.metric import Metric
from harness.core.record import Measurement
from harness.core.workload import ServingWorkload, Slo
from harness.stats.serving import Answered, answered, in_bursts, meets, window_s

VERSION = 1
GAPS, EVENT_GAPS = "serving_gap_s", "serving_event_gap_s"
Protocol = Mapping[str, Scalar]


def measure(requests: Sequence[Answered], slo: Slo | None, protocol: Protocol) -> Iterator[Measurement]:
    """The measurements of one level of load: of each request, and of all.

    ``GAPS`` are the times between tokens; where these arrive in bursts there are ``EVENT_GAPS`` between events instead,
    and no ITL. A request that was not answered has no time but those when it was planned and sent, and does not meet
    the SLO. If none was answered, every rate is zero.
    """
    well, bursts = answered(requests), in_bursts(requests)
    seconds = window_s(requests) if well else math.inf
    yield _count("serving_failures", "requests", float(len(requests) - len(well)), protocol)
    yield _rate("serving_requests_per_s", "requests/s", len(well) / seconds, protocol)
    yield _rate("serving_output_tok_per_s", "tok/s", sum(each.output_tokens for each in well) / seconds, protocol)
    if slo is not None:
        met = dict(zip((each.name for each in requests), meets(requests, slo), strict=True))
        with_slo = {**protocol, "slo": slo.label}
        yield _items("serving_met", "", "higher", met, with_slo)
        yield _rate("serving_goodput_per_s", "requests/s", sum(met.values()) / seconds, with_slo)
    planned = {each.name: each.planned_s for each in requests if each.planned_s is not None}
    if planned:
        yield _items("serving_planned_s", "s", "neither", planned, protocol)
    yield _items("serving_sent_s", "s", "neither", {each.name: each.sent_s for each in requests}, protocol)
    if not well:
        return
    yield _items("serving_ttft_s", "s", "lower", {each.name: each.ttft_s for each in well}, protocol)
    yield _items("serving_e2e_s", "s", "lower", {each.name: each.e2e_s for each in well}, protocol)
    tpots = {each.name: tpot for each in well if (tpot := each.tpot_s) is not None}
    if tpots:
        yield _items("serving_tpot_s", "s", "lower", tpots, protocol)
    yield _items("serving_prompt_tokens", "tokens", "neither", _tokens(well, "prompt_tokens"), protocol)
    yield _items("serving_output_tokens", "tokens", "neither", _tokens(well, "output_tokens"), protocol)
    count = sum(len(each.gaps_s) for each in well)
    if count:
        metric = EVENT_GAPS if bursts else GAPS
        gaps = numbers((gap for each in well for gap in each.gaps_s), count)
        names = texts((each.name for each in well for _ in range(len(each.gaps_s))), count)
        yield Measurement(metric, VERSION, "s", "lower", "samples", gaps, protocol, cluster_ids=names)


def values_per_request(workload: ServingWorkload) -> int:
    """The values of a request that is answered: eight at most, and if all answers have one length, its gaps."""
    scheduled, limited, several = workload.arrival != "concurrent", workload.slo is not None, workload.new_tokens > 1
    return 5 + scheduled + limited + several + (0 if workload.natural else workload.new_tokens - 1)


def fitted(measurements: Sequence[Measurement], most: int) -> tuple[list[Measurement], int]:
    """The measurements of all levels with at most so many values, and one in how many requests still has its gaps.

    Gaps are by far the most of all values, and only they are left out: all of a request's, evenly at each level.
    """
    if sum(len(m.values) for m in measurements) <= most:
        return list(measurements), 1
    sizes = {
        place: [len(list(own)) for _, own in groupby(m.cluster_ids)]
        for place, m in enumerate(measurements)
        if m.metric in (GAPS, EVENT_GAPS)
    }
    room = most - sum(len(m.values) for place, m in enumerate(measurements) if place not in sizes)
    fewest = max(map(len, sizes.values()), default=1)
    steps = (step for step in range(2, fewest) if sum(sum(own[::step]) for own in sizes.values()) <= room)
    step = next(steps, fewest)
    return [_every(m, sizes[at], step) if at in sizes else m for at, m in enumerate(measurements)], step


def _every(gaps: Measurement, sizes: Sequence[int], step: int) -> Measurement:
    """The gaps of one request in ``step``; ``sizes`` are how many each has."""
    kept = np.repeat(np.arange(len(sizes)) % step == 0, sizes)
    values, names = (ArrayColumn[Any](np.asarray(column)[kept]) for column in (gaps.values, gaps.cluster_ids))
    return replace(gaps, values=values, cluster_ids=names)


def largest(level: float, unit: str, slo: Slo, protocol: Protocol) -> Measurement:
    """The largest load at which one process held the SLO; 0 if it held at none."""
    return _rate("serving_largest_load", unit, level, {**protocol, "slo": slo.label})


def counter(metric: str, unit: str, value: float, protocol: Protocol) -> Measurement:
    """What the server or the machine counted during one level."""
    direction: Literal["lower", "neither"] = "lower" if metric.endswith("_j_per_tok") else "neither"
    return Measurement(metric, VERSION, unit, direction, "samples", (value,), protocol)


def _tokens(requests: Sequence[Answered], name: str) -> dict[str, float]:
    return {each.name: float(getattr(each, name)) for each in requests}


def _items(
    metric: str,
    unit: str,
    direction: Literal["lower", "higher", "neither"],
    of: Mapping[str, float],
    protocol: Protocol,
) -> Measurement:
    return Measurement(metric, VERSION, unit, direction, "paired", tuple(of.values()), protocol, item_ids=tuple(of))


def _rate(metric: str, unit: str, value: float, protocol: Protocol) -> Measurement:
    return Measurement(metric, VERSION, unit, "higher", "samples", (value,), protocol)


def _count(metric: str, unit: str, value: float, protocol: Protocol) -> Measurement:
    return Measurement(metric, VERSION, unit, "lower", "exact", (value,), protocol)


SERVING = Metric(
    name="serving",
    version=VERSION,
    kind="workload",
    summary="latencies, throughput and goodput of a server under load, request by request",
    make=measure,
)
