"""How long the rest of a sweep will take, from its forecast and from how long its runs have taken so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from harness.planning.forecast.forecast import RunForecast, Span, SweepForecast
from harness.planning.forecast.learned import Component
from harness.stats.nested import NestedMeans

SPREADS = (0.4, 0.3, 0.3)
"""How far the ratio of what runs take to what was expected differs: all from one, kinds, methods (of its logarithm)."""
NOISE = 0.2
"""The same between runs of one kind and method."""
LEAST_LEFT = 0.1
"""The part of its time that a run is taken to need still if it has taken as long as was expected."""
FIRST_TURN = -1
"""Of runs that execute already: they begin before all others."""


def remaining(forecast: SweepForecast, taken_s: Mapping[str, float], running_s: Mapping[str, float]) -> Span:
    """The time until the last run of a forecast ends.

    ``taken_s`` are the seconds of those that were made, ``running_s`` of those that execute, by run id. A run that will
    not be made is left out of the forecast.
    """
    ratios = [
        (run.group, math.log(taken / run.time.expected_s))
        for run_id, taken in taken_s.items()
        if (run := forecast.runs.get(run_id)) is not None and min(taken, run.time.expected_s) > 0
    ]
    means = NestedMeans(ratios, SPREADS, NOISE)
    rest = {
        run_id: _adjusted(_begun(run) if run_id in running_s else run, means, running_s.get(run_id, 0.0))
        for run_id, run in forecast.runs.items()
        if run_id not in taken_s
    }
    return replace(forecast, runs=rest).total_s


def _begun(run: RunForecast) -> RunForecast:
    return replace(run, constraints=replace(run.constraints, turn=FIRST_TURN))


def _adjusted(run: RunForecast, means: NestedMeans, elapsed_s: float) -> RunForecast:
    """What is left of a run at the pace of others: the more of them were seen, the less of its range is left open."""
    whole, own = means.estimate(()), means.estimate(run.group)
    times = math.exp(own.mean)
    shared = math.sqrt(whole.variance) / SPREADS[0]
    group = math.sqrt(max(own.variance - whole.variance, 0.0) / sum(spread**2 for spread in SPREADS[1:]))
    parts = [
        Component(part.mean_s, shared * part.shared_s, group * part.group_s, part.own_s) for part in run.components
    ]
    mean_s = run.mean_s
    if mean_s <= 0:
        return replace(run, components=())
    variance = sum(part.shared_s**2 + part.group_s**2 + part.own_s**2 for part in parts)
    times *= run.time.expected_s / mean_s * math.sqrt(1 + variance / mean_s**2)  # a log-normal mean from its median
    times *= max(1 - elapsed_s / (times * mean_s), LEAST_LEFT)
    parts = [
        Component(times * part.mean_s, times * part.shared_s, times * part.group_s, times * part.own_s)
        for part in parts
    ]
    return replace(run, components=tuple(parts))
