"""Forecasts of sweeps, from the speeds of a machine that executes the runs and its earlier runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.core.record import RunRecord
from harness.core.run import HourlyPrice
from harness.core.site import Node, Speeds
from harness.execution.schedule import width
from harness.execution.starter import forks
from harness.planning.forecast.forecast import SweepForecast, forecast
from harness.planning.plan import PlannedRun
from harness.storage.store import Store

MOST_OTHER_RUNS = 300
"""Runs of other recipes that a forecast learns from: to read more takes longer than it is worth."""


@dataclass(frozen=True)
class ForecastBasis:
    """What a forecast rests on: a machine's speeds, and records of its earlier runs."""

    speeds: Speeds
    known: Sequence[RunRecord]

    def forecast(
        self,
        left: Sequence[PlannedRun],
        planned: Sequence[PlannedRun],
        nodes: Sequence[Node],
        price: HourlyPrice | None = None,
    ) -> SweepForecast:
        """Of the runs that are ``left`` of a plan, as if all nodes were as fast as that machine."""
        specs = [run.spec for run in planned]
        lanes = tuple(width(specs, [node]) for node in nodes)
        made = forecast(left, planned, self.speeds, self.known, lanes, price, spawned=not forks())
        lent_s = min((node.lent_s for node in nodes if node.lent_s is not None), default=None)
        memory = tuple(node.memory_bytes if node.cores else None for node in nodes)
        return replace(made, lent_s=lent_s, memory_bytes=memory)


def forecast_basis(speeds: Speeds, store: Store, recipe: str, records: Sequence[RunRecord]) -> ForecastBasis:
    """A machine's speeds, the recipe's own ``records``, and some of other recipes in the same results."""
    return ForecastBasis(speeds, [*store.read_others(recipe, MOST_OTHER_RUNS), *records])
