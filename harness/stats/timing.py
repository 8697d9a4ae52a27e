"""Speeds from repeated timings: medians, their intervals, ratios of two variants, and the number of outliers.

Timings have two levels: iterations within a process, and processes. Differences between processes (memory layout,
clock rates) affect all iterations of one process, so iterations cannot replace processes: Kalibera and Jones,
"Rigorous benchmarking in reasonable time", ISMM 2013. Resampling follows Davison and Hinkley, "Bootstrap Methods and
their Application" (1997), section 3.8: the upper level is drawn with replacement, and already contains the scatter
within it. A simulation checks how often the intervals cover the truth: benchmarks/speed_intervals.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from harness.stats.estimate import CONFIDENCE, Estimate, Floats, t_interval
from harness.stats.repeats import FEWEST_PROCESSES, no_interval, of_process, over_processes

RESAMPLES = 2000
WITHIN = 200
"""Resamples of the iterations of one process."""
AT_ONCE = 2_000_000
"""Timings of resamples that are in memory at the same time: of a hundred thousand timings, 20 resamples."""
SEED = 2013
FENCE = 3.0
"""Interquartile ranges beyond the quartiles: Tukey's outer fences, "Exploratory Data Analysis" (1977), section 2E."""
FEWEST_FOR_FENCES = 4
"""Minimum number of timings: quartiles of fewer are made of the very values that they should judge."""
COUNTED_PROCESSES = 4
"""Up to this many, medians of resamples are counted by the ranks of the processes: their orders are few."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Timings:
    """One process's timings of one thing: seconds, and the iteration that each belongs to.

    ``repetition`` numbers the process; those with the same number ran one after another in an interleaved sweep.
    """

    repetition: int
    seconds: Sequence[float]
    iterations: Sequence[str]

    @cached_property
    def median_s(self) -> float:
        return of_process(self.seconds)

    @cached_property
    def count(self) -> int:
        """The number of iterations, which are resampled because the steps of one iteration are not independent."""
        return len(set(self.iterations))

    @cached_property
    def resampled_s(self) -> Floats:
        """Medians (WITHIN,) over iterations drawn with replacement, each with all its timings."""
        return resampled_medians(self, np.random.default_rng([SEED, self.repetition]))

    @cached_property
    def outliers(self) -> int:
        """Timings beyond the outer fences: three interquartile ranges below the first or above the third quartile."""
        if len(self.seconds) < FEWEST_FOR_FENCES:
            return 0
        ordered = sorted(map(float, self.seconds))
        low, high = (_interpolated(ordered.__getitem__, len(ordered), share) for share in (0.25, 0.75))
        reach = FENCE * (high - low)
        return sum(not low - reach <= each <= high + reach for each in self.seconds)


def speed(processes: Sequence[Timings], tokens: int) -> Estimate:
    """Tokens per second: the median over processes of ``tokens`` / (each process's median seconds).

    From FEWEST_PROCESSES on, the interval is the t-interval of the logarithms of their speeds, at no side narrower
    than the bootstrap over processes, and includes the figure. With one process it is the bootstrap over its
    iterations, which says nothing about other processes; in between there is none.
    Raises ValueError if there is no process, or one without a timing.
    """
    _refuse_empty(processes)
    speeds = np.array([tokens / process.median_s for process in processes])
    value = over_processes(speeds.tolist())
    if len(speeds) == 1:
        return _within(value, tokens / processes[0].resampled_s, processes[0].count)
    if len(speeds) < FEWEST_PROCESSES:
        return Estimate(value, None, None, len(speeds), no_interval(len(speeds)), "processes")
    return _between(value, np.log(speeds), _resampled_ends(speeds))


def ratio(ours: Sequence[Timings], theirs: Sequence[Timings]) -> Estimate:
    """How many times as fast ``ours`` is as ``theirs`` for equal work: the ratio of the two speeds.

    Processes of one repetition are pairs: anything that slows the machine slows both and cancels out. The interval is
    that of the pairs' ratios, as in ``speed``; with one pair, the bootstrap over the iterations of both. There is none
    without pairs, or with fewer than FEWEST_PROCESSES.
    Raises ValueError if a side has no process, or one without a timing.
    """
    _refuse_empty(ours)
    _refuse_empty(theirs)
    value = over_processes(_rates(ours)) / over_processes(_rates(theirs))
    pairs = [(one, other) for one in ours for other in theirs if one.repetition == other.repetition]
    if not pairs:
        return Estimate(value, None, None, 0, "no repetition has both: no interval", "processes")
    mine, base = (np.array(_rates(side)) for side in zip(*pairs, strict=True))
    if len(pairs) == 1:
        (one, other) = pairs[0]
        shuffled = np.random.default_rng(SEED).permutation(WITHIN)
        return _within(value, other.resampled_s[shuffled] / one.resampled_s, min(one.count, other.count))
    if len(pairs) < FEWEST_PROCESSES:
        return Estimate(value, None, None, len(pairs), no_interval(len(pairs)), "processes")
    return _between(value, np.log(mine / base), _resampled_ends(mine, base))


def resampled_medians(timings: Timings, generator: np.random.Generator) -> Floats:
    """Medians (WITHIN,) of as many iterations as there are, drawn with replacement.

    No timing is copied: each of the sorted timings counts as often as its iteration was drawn, and the median is where
    half of the drawn timings are reached. Resamples are made some at a time, so that memory grows with the timings
    alone: the requests of a server under load are many, and each is an iteration.
    """
    seconds = np.asarray(timings.seconds, dtype=np.float64)
    _, members = np.unique(np.asarray(timings.iterations), return_inverse=True)
    order = np.argsort(seconds, kind="stable")
    rising, iteration = seconds[order], members[order]
    shares = np.full(timings.count, 1 / timings.count)
    rows = max(AT_ONCE // len(seconds), 1)
    medians = []
    for begin in range(0, WITHIN, rows):
        drawn = generator.multinomial(timings.count, shares, size=min(rows, WITHIN - begin))
        reached = np.cumsum(drawn[:, iteration], axis=1)
        sizes = reached[:, -1:]
        ends = [(reached < rank).sum(axis=1) for rank in ((sizes + 1) // 2, sizes // 2 + 1)]
        medians.append((rising[ends[0]] + rising[ends[1]]) / 2)
    return np.concatenate(medians)


@lru_cache(maxsize=16)
def _draws(count: int) -> Ints:
    """The processes in each resample of ``count``, (RESAMPLES, count); the same for every figure."""
    return np.random.default_rng(SEED).integers(count, size=(RESAMPLES, count))


def _resampled_ends(*sides: Floats) -> tuple[float, float]:
    """The percentiles of the median over resampled processes; with two sides, of the ratio of their medians."""
    count = len(sides[0])
    if count > COUNTED_PROCESSES or np.isnan(sides).any():
        medians = [np.median(side[_draws(count)], axis=1) for side in sides]
        return percentiles(medians[0] / medians[1] if len(sides) > 1 else medians[0])
    orders = [np.argsort(side, kind="stable") for side in sides]
    halves, times = _median_ranks(tuple(tuple(order.tolist()) for order in orders))
    medians = [side[order][half].sum(axis=1) / 2 for side, order, half in zip(sides, orders, halves, strict=True)]
    found = medians[0] / medians[1] if len(sides) > 1 else medians[0]
    rising = np.argsort(found, kind="stable")
    ends, values = np.cumsum(times[rising]), found[rising]
    low, high = (
        _interpolated(lambda place: float(values[np.searchsorted(ends, place, side="right")]), RESAMPLES, share)
        for share in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    )
    return low, high


@lru_cache(maxsize=1024)
def _median_ranks(orders: tuple[tuple[int, ...], ...]) -> tuple[Ints, Ints]:
    """Which ranks the median of a resample lies between, if the processes of each side have this order.

    ``halves`` (sides, n, 2) holds the two ranks of each of the n combinations that occur, equal for odd numbers of
    processes, and ``times`` (n,) how many resamples have it.
    """
    count = len(orders[0])
    ranks = [np.sort(np.argsort(order)[_draws(count)], axis=1) for order in orders]
    middle = np.concatenate([each[:, [(count - 1) // 2, count // 2]] for each in ranks], axis=1)
    found, times = np.unique(middle, axis=0, return_counts=True)
    return found.reshape(len(found), len(orders), 2).swapaxes(0, 1), times


def _interpolated(value_at: Callable[[int], float], count: int, share: float) -> float:
    """The value below which ``share`` of ``count`` sorted values lie, interpolated as ``numpy.quantile`` does."""
    place = (count - 1) * share
    below = math.floor(place)
    part = place - below
    low, high = value_at(below), value_at(min(below + 1, count - 1))
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


def _between(value: float, logs: Floats, resampled: tuple[float, float]) -> Estimate:
    low, high = resampled
    least, most = np.exp(t_interval(logs))
    method = "95% t-interval over processes, never narrower than the bootstrap's"
    return Estimate(value, min(low, float(least), value), max(high, float(most), value), len(logs), method, "processes")


def _within(value: float, resampled: Floats, iterations: int) -> Estimate:
    if iterations < 2:
        return Estimate(value, None, None, 1, "one process, one iteration: no interval", "processes")
    low, high = percentiles(resampled)
    method = f"95% bootstrap over {iterations} iterations of one process: what differs between processes is not in it"
    return Estimate(value, min(low, value), max(high, value), 1, method, "processes")


def percentiles(resampled: Floats) -> tuple[float, float]:
    """The ends of the 95% percentile interval."""
    low, high = np.quantile(resampled, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def _rates(processes: Sequence[Timings]) -> list[float]:
    """How often each process would do its work per second."""
    return [1 / each.median_s for each in processes]


def _refuse_empty(processes: Sequence[Timings]) -> None:
    if not processes or not all(process.seconds for process in processes):
        raise ValueError("no timings")
