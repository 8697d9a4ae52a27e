"""Forecasts against fact: ``python benchmarks/forecast.py RECIPE RESULTS [CACHE]``.

If RESULTS holds no runs of the recipe, they are made first, in CACHE (a new folder by default), and the remaining time
is compared with what followed at each quarter of the sweep. Then three forecasts are compared with the records: from
this machine's speeds alone; of every second run, from the others; and of all, from the same runs. A ratio is the time
taken to the time forecast. Exits with 1, and says why, if one of the three is beyond the bar, either way.
docs/measurements/forecast.md records what it prints.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.api.plan import plan
from harness.api.run import run
from harness.core.record import RunRecord
from harness.core.site import Speeds
from harness.execution.events import Event, Expected, Forecasted, Remaining
from harness.host.machine import cache_folder, choose
from harness.host.speeds import machine_speeds
from harness.planning.forecast.forecast import Span, forecast
from harness.planning.forecast.learned import Learned, measured
from harness.planning.forecast.work import Starts, work
from harness.planning.plan import PlannedRun
from harness.recipe import load_recipe
from harness.storage.store import Store

RATIO_BAR = 1.5
"""The time taken is at most so many times the time forecast, and the other way round."""
Pairs = Sequence[tuple[PlannedRun, RunRecord]]


def made(recipe: Path, results: Path, cache: Path) -> None:
    """Runs the recipe and prints the remaining time at each quarter beside what followed."""
    said: list[tuple[float, Span]] = []

    def watch(event: Event) -> None:
        if isinstance(event, Remaining):
            said.append((time.perf_counter(), event.left_s))
        if isinstance(event, Expected | Forecasted):
            print(event if isinstance(event, Forecasted) else event.forecast.total_s)

    run(recipe, results, cache, on_event=watch)
    end = said[-1][0]
    for quarter in range(4):
        at, span = said[quarter * (len(said) - 1) // 4]
        within = "within" if span.low <= end - at <= span.high else "outside"
        print(f"after {quarter}/4 of the runs: {span.expected:.0f} s left, ratio {ratio(end - at, span)}, {within}")


def ratio(took_s: float, span: Span) -> str:
    return f"{took_s / span.expected:.2f} ({span.low / span.expected:.2f}–{span.high / span.expected:.2f})"


def compare(
    name: str, wanted: Pairs, planned: Sequence[PlannedRun], speeds: Speeds, known: Sequence[RunRecord]
) -> Iterator[str]:
    """Prints a forecast of runs beside what they took, and yields the bar if it was missed.

    Whether they were forked is known.
    """
    expected = forecast([each for each, _ in wanted], planned, speeds, known, spawned=are_spawned(wanted, speeds))
    times = [(expected.runs[each.spec.run_id].time, record.wall_s) for each, record in wanted]
    within = sum(time.low_s <= wall_s <= time.high_s for time, wall_s in times)
    took_s = sum(wall_s for _, wall_s in times)
    print(f"{name}: ratio {ratio(took_s, expected.total_s)}, {within} of {len(times)} runs within their ranges")
    off = took_s / expected.total_s.expected
    if not 1 / RATIO_BAR <= off <= RATIO_BAR:
        yield f"{name}: the runs took {off:.2f} times the time forecast; the bar is {RATIO_BAR}, either way"


def are_spawned(pairs: Pairs, speeds: Speeds) -> bool:
    return Learned([record for _, record in pairs], [each for each, _ in pairs], speeds).spawned


def parts(pairs: Pairs, speeds: Speeds) -> None:
    """Prints the arithmetic → the records, a run of each kind, in multiples of the time that Python takes to start."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 5)
    starts = Starts(are_spawned(pairs, speeds))
    for planned, record in pairs:
        by_arithmetic, fact = work(planned, speeds, starts.add(planned.spec, shared=False)), measured(record)
        assert fact is not None
        seconds = (by_arithmetic.starting_s, fact.starting_s, by_arithmetic.computing_s, fact.computing_s)
        for index, each in enumerate(seconds):
            sums[planned.spec.kind][index] += each / speeds.start_s
        sums[planned.spec.kind][4] += 1
    for kind, (started, starting, computed, computing, count) in sums.items():
        mean = [round(each / count) for each in (started, starting, computed, computing)]
        print(f"{kind:12} {count:3.0f}: starting {mean[0]} → {mean[1]}, computing {mean[2]} → {mean[3]}")


def main(recipe: Path, results: Path, cache: Path) -> list[str]:
    """The bars that were missed."""
    chosen = load_recipe(recipe)
    planned = plan(chosen)
    if not Store(results).read(chosen.name).records:
        made(recipe, results, cache)
    records = {
        (record.spec.case_id, record.spec.repetition): record for record in Store(results).read(chosen.name).records
    }
    found = [(each, records.get((each.spec.case_id, each.spec.repetition))) for each in planned]
    pairs = [(each, record) for each, record in found if record is not None and measured(record) is not None]
    speeds = machine_speeds(choose(chosen.device), cache_folder())
    print(f"{len(pairs)} of {len(planned)} runs were measured; {speeds}")
    same, odd, even = [record for _, record in pairs], pairs[1::2], [record for _, record in pairs[::2]]
    missed = [
        *compare("from this machine's speeds", pairs, planned, speeds, ()),
        *compare("from every other run", odd, planned, speeds, even),
        *compare("from the same runs", pairs, planned, speeds, same),
    ]
    parts(pairs, speeds)
    return missed


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python benchmarks/forecast.py RECIPE RESULTS [CACHE]")
    with tempfile.TemporaryDirectory() as fresh:
        missed = main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) == 4 else fresh))
    for fault in missed:
        print(f"missed: {fault}")
    sys.exit(1 if missed else 0)
