"""Coverage of the speed intervals, by simulation: ``python benchmarks/speed_intervals.py [SWEEPS]``.

Each sweep makes 1, 3, 5 or 10 processes of five iterations whose true speed is known, and as many of the baseline.
Prints Markdown tables, which docs/measurements/speed-intervals.md records.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats.estimate import CONFIDENCE, Floats, t_interval
from harness.stats.timing import RESAMPLES, WITHIN, Timings, percentiles, ratio, speed

Generator = np.random.Generator
Ends = tuple[float, float]

SWEEPS = 1000
PROCESSES = (1, 3, 5, 10)
ITERATIONS = 5
VARIANTS, CELLS = 40, 9
"""The size of the large table whose cost is measured."""


@dataclass(frozen=True)
class Family:
    """``between`` draws the factor by which each process is slower than the truth, with a median of 1; ``within`` the
    same for each iteration."""

    between: Callable[[Generator, int], Floats]
    within: Callable[[Generator, tuple[int, int]], Floats]

    def processes(self, generator: Generator, count: int, machine: Floats) -> list[Timings]:
        """Timings of work that takes 1 s; ``machine`` is the machine's own slowdown factor per process."""
        slower = self.between(generator, count) * machine
        seconds = slower[:, None] * self.within(generator, (count, ITERATIONS))
        names = tuple(map(str, range(ITERATIONS)))
        return [Timings(number, tuple(row.tolist()), names) for number, row in enumerate(seconds)]


def lognormal(scatter: float) -> Callable[..., Floats]:
    return lambda generator, size: np.asarray(np.exp(scatter * generator.standard_normal(size)))


def spikes(generator: Generator, size: tuple[int, int]) -> Floats:
    """One iteration in ten takes three times as long."""
    return np.asarray(lognormal(0.02)(generator, size) * np.where(generator.random(size) < 0.1, 3.0, 1.0))


def skewed(generator: Generator, count: int) -> Floats:
    """Slower by an exponential amount of 5% on average, minus its median."""
    return np.asarray(np.exp(generator.exponential(0.05, count) - 0.05 * np.log(2)))


def two_kinds(generator: Generator, count: int) -> Floats:
    """One process in four is 10% slower."""
    return np.asarray(lognormal(0.005)(generator, count) * np.where(generator.random(count) < 0.25, 1.1, 1.0))


FAMILIES = {
    "between 2%, within 2%": Family(lognormal(0.02), lognormal(0.02)),
    "between 5%, within 1%": Family(lognormal(0.05), lognormal(0.01)),
    "between 1%, within 5%": Family(lognormal(0.01), lognormal(0.05)),
    "spikes": Family(lognormal(0.02), spikes),
    "skewed": Family(skewed, lognormal(0.01)),
    "two kinds": Family(two_kinds, lognormal(0.01)),
}
TRUTH = {"two kinds": float(np.exp(-0.005 * 0.4307)), "spikes": float(np.exp(-0.02 * 0.1397))}
"""True speeds other than 1. For two kinds, the median is the speed that two thirds of the fast processes reach (0.4307
standard deviations). With spikes, the median time is the 5/9 quantile of the other times (0.1397)."""


def used(processes: Sequence[Timings]) -> Ends | None:
    found = speed(processes, 1)
    return None if found.low is None or found.high is None else (found.low, found.high)


def student(processes: Sequence[Timings]) -> Ends | None:
    if len(processes) < 2:
        return None
    low, high = np.exp(t_interval(-np.log([each.median_s for each in processes])))
    return float(low), float(high)


def of_processes(processes: Sequence[Timings]) -> Ends | None:
    """Percentiles of the median over processes, resampled with replacement."""
    speeds = 1 / np.array([each.median_s for each in processes])
    drawn = np.random.default_rng(1).integers(len(speeds), size=(RESAMPLES, len(speeds)))
    return percentiles(np.median(speeds[drawn], axis=1)) if len(speeds) > 1 else None


def of_both(processes: Sequence[Timings]) -> Ends | None:
    """The same, with the iterations of each process resampled too."""
    generator = np.random.default_rng(1)
    speeds = 1 / np.array([each.resampled_s for each in processes])
    shape = (RESAMPLES, len(speeds))
    drawn = speeds[generator.integers(len(speeds), size=shape), generator.integers(WITHIN, size=shape)]
    return percentiles(np.median(drawn, axis=1))


WAYS = {"used": used, "t of logarithms": student, "bootstrap: processes": of_processes, "bootstrap: both": of_both}


def held(name: str, count: int, sweeps: int, generator: Generator) -> dict[str, tuple[float, float] | None]:
    """For each kind of interval: the fraction of sweeps in which it contains the truth, and its median half width."""
    truth, flat = TRUTH.get(name, 1.0), np.ones(count)
    drawn = [FAMILIES[name].processes(generator, count, flat) for _ in range(sweeps)]
    found: dict[str, tuple[float, float] | None] = {}
    for way, interval in WAYS.items():
        ends = [each for processes in drawn if (each := interval(processes))]
        found[way] = _share(ends, truth) if ends else None
    return found


def ratios_held(count: int, drift: float, sweeps: int, generator: Generator) -> tuple[float, float] | None:
    """Like ``held``, for the ratio of two variants, one twice as fast, on a machine that drifts between repetitions."""
    family, ends = FAMILIES["between 2%, within 2%"], []
    for _ in range(sweeps):
        machine = np.exp(np.cumsum(drift * generator.standard_normal(count)))
        found = ratio(family.processes(generator, count, machine / 2), family.processes(generator, count, machine))
        if found.low is not None and found.high is not None:
            ends.append((found.low, found.high))
    return _share(ends, 2.0) if ends else None


def _share(ends: Sequence[Ends], truth: float) -> tuple[float, float]:
    holds = sum(low <= truth <= high for low, high in ends) / len(ends)
    return holds, float(np.median([(high - low) / 2 / truth for low, high in ends]))


def main() -> None:
    sweeps = int(sys.argv[1]) if len(sys.argv) > 1 else SWEEPS
    seeds = iter(range(1, 1000))
    print(f"## Speeds: {CONFIDENCE:.0%} is promised\n")
    _row(["noise", "processes", *WAYS], head=True)
    for name in FAMILIES:
        for count in PROCESSES:
            found = held(name, count, sweeps, np.random.default_rng(next(seeds)))
            _row([name, str(count), *map(_cell, found.values())])
    print("\n## Ratios\n")
    drifts = (0.0, 0.02, 0.1)
    _row(["pairs", *(f"drift {drift:.0%}" for drift in drifts)], head=True)
    for count in PROCESSES:
        found_ratios = [ratios_held(count, drift, sweeps, np.random.default_rng(next(seeds))) for drift in drifts]
        _row([str(count), *map(_cell, found_ratios)])
    print(f"\n## Cost of {VARIANTS} variants at {CELLS} points, 3 processes, 5 iterations of 128 steps\n")
    print(f"{_cost_s():.1f} s")


def _cost_s() -> float:
    """CPU seconds to compute all speeds and ratios of a large table."""
    generator, names = np.random.default_rng(0), tuple(str(place // 128) for place in range(640))
    began = time.process_time()
    for _ in range(VARIANTS * CELLS):
        for _ in ("prefill", "decode"):
            ours, theirs = (
                [Timings(number, tuple(generator.random(640)), names) for number in range(3)] for _ in range(2)
            )
            speed(ours, 1)
            ratio(ours, theirs)
    return time.process_time() - began


def _cell(found: tuple[float, float] | None) -> str:
    return "–" if found is None else f"{found[0]:.1%} ± {found[1]:.1%}"


def _row(cells: Sequence[str], head: bool = False) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)
    if head:
        print(f"|{' --- |' * len(cells)}")


if __name__ == "__main__":
    main()
