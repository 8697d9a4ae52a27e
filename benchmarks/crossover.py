"""Coverage of the crossover's interval, by simulation: ``python benchmarks/crossover.py [SWEEPS]``.

Each sweep makes the requests of 1, 3, 5 or 10 processes at every level of a ladder, with a variant whose true ratio to
the baseline is known. Prints Markdown tables, which docs/measurements/serving.md records.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats.crossover import Crossover, crossover
from harness.stats.timing import Timings, speed

Generator = np.random.Generator

SWEEPS = 1000
PROCESSES = (1, 3, 5, 10)
LEVELS = (1.0, 4.0, 8.0, 16.0, 32.0, 64.0)
CROSSING = 24.0
REQUESTS = 32


@dataclass(frozen=True)
class Family:
    """``slower(level)`` is the logarithm of the variant's times over the baseline's, true at every level.

    ``process``, ``level`` and ``request`` are the standard deviations by which its processes, each level of a process,
    and the requests scatter about it; ``spikes`` is the share of requests that take three times as long.
    """

    slower: Callable[[float], float]
    process: float = 0.02
    level: float = 0.01
    request: float = 0.1
    spikes: float = 0.0

    def crossover(self, generator: Generator, processes: int) -> Crossover | None:
        """That of one sweep, computed as reports do: from the ratios of paired requests."""
        shift = self.process * generator.standard_normal((processes, 1))
        shift = shift + self.level * generator.standard_normal((processes, len(LEVELS)))
        noise = self.request * generator.standard_normal((processes, len(LEVELS), REQUESTS))
        for sign in (1, -1):  # of either side
            noise = noise + sign * math.log(3) * (generator.random(noise.shape) < self.spikes)
        slower = np.array([self.slower(level) for level in LEVELS])
        seconds = np.exp(slower[:, None] + shift[:, :, None] + noise)
        names = [str(number) for number in range(REQUESTS)]
        ratios = [
            speed([Timings(number, own[place].tolist(), names) for number, own in enumerate(seconds)], 1)
            for place in range(len(LEVELS))
        ]
        return crossover(LEVELS, ratios)


def straight(slope: float) -> Callable[[float], float]:
    return lambda level: slope * math.log(level / CROSSING)


def in_load(level: float) -> float:
    """Straight in the load itself, so that between two levels it is bent in the logarithm of the load."""
    return 0.01 * (level - CROSSING)


CROSSING_FAMILIES = {
    "steep": Family(straight(0.1)),
    "shallow": Family(straight(0.02)),
    "bent": Family(in_load),
    "processes 5%": Family(straight(0.1), process=0.05),
    "levels 5%": Family(straight(0.1), level=0.05),
    "requests 50%": Family(straight(0.1), request=0.5),
    "spikes": Family(straight(0.1), spikes=0.1),
}
OTHER_FAMILIES = {
    "as fast at every level": Family(lambda level: 0.0),
    "2% slower at every level": Family(lambda level: 0.02),
}


def found_in(family: Family, processes: int, sweeps: int, seed: int) -> list[Crossover]:
    """The crossovers that sweeps report."""
    generator = np.random.default_rng(seed)
    every = (family.crossover(generator, processes) for _ in range(sweeps))
    return [each for each in every if each is not None]


def covering(found: Sequence[Crossover]) -> float:
    """The share of crossovers whose interval holds the truth, and that go the right way."""
    return sum(each.slower and each.low <= CROSSING <= each.high for each in found) / len(found)


def _width(found: Sequence[Crossover]) -> str:
    """The median of the ends of those within the levels."""
    certain = [each for each in found if each.certain]
    if not certain:
        return "–"
    low, high = np.median([[each.low, each.high] for each in certain], axis=0)
    return f"{low:.0f} to {high:.0f}"


def main(sweeps: int) -> None:
    print("| ratio, noise | processes | reported | hold the truth | within the levels | median interval of these |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, family in CROSSING_FAMILIES.items():
        for processes in PROCESSES:
            found = found_in(family, processes, sweeps, processes)
            certain = sum(each.certain for each in found)
            print(
                f"| {name} | {processes} | {len(found) / sweeps:.1%} | {covering(found):.1%} "
                f"| {certain / sweeps:.1%} | {_width(found)} |"
            )
    print("\n| no crossover | processes | reported | within the levels |\n| --- | --- | --- | --- |")
    for name, family in OTHER_FAMILIES.items():
        for processes in PROCESSES:
            found = found_in(family, processes, sweeps, processes)
            certain = sum(each.certain for each in found)
            print(f"| {name} | {processes} | {len(found) / sweeps:.1%} | {certain / sweeps:.1%} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else SWEEPS)
