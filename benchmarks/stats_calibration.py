"""Error rates of the verdicts on simulated pairs: ``python benchmarks/stats_calibration.py [PAIRS]``.

Each family makes pairs of measurements whose true difference is known. Prints Markdown tables, which
docs/measurements/stats-calibration.md records: how often a difference is found although there is none, how often two
variants that are a margin apart are called equivalent, how often a true difference is found, and what the rule does
if its assumptions fail.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter
from scipy.stats import binom

from harness.core.identity import Scalar
from harness.core.record import Measurement
from harness.stats.bounds import Bound, Outer
from harness.stats.comparison import Comparison
from harness.stats.rule import compare, compare_speeds
from harness.stats.significance import bca, clustered_t

Floats = npt.NDArray[np.float64]
Generator = np.random.Generator

ALPHA = 0.05
PAIRS = 1000
COUNTS = (2, 4, 6, 8, 12, 16, 17, 20, 30, 49, 50, 100, 200, 500, 1000)
SPEED_COUNTS = (2, 3, 4, 5, 8, 10, 11, 20)
ZEROS = (0.1, 0.5)
"""Shares of processes that measure a rate of zero, on either side."""
NO_MARGIN = 1e-12
FAR = 1e4
"""The difference of separated data, in standard errors."""


@dataclass(frozen=True)
class Draw:
    """One pair: the values of both sides, and the other fields of their measurements."""

    variant: Floats
    baseline: Floats
    unit: str = "nat"
    clusters: tuple[str, ...] = ()
    protocol: dict[str, Scalar] = field(default_factory=dict)

    def measurements(self) -> tuple[Measurement, Measurement]:
        """The measurements of variant and baseline."""
        ours = Measurement(
            metric="simulated",
            version=1,
            unit=self.unit,
            direction="lower",
            evidence="paired",
            values=tuple(self.variant.tolist()),
            protocol=self.protocol,
            item_ids=_names(len(self.variant)),
            cluster_ids=self.clusters,
        )
        return ours, replace(ours, values=tuple(self.baseline.tolist()))

    def compare(self, margin: float) -> Comparison:
        return compare(*self.measurements(), margin, "lower", ALPHA)


@dataclass(frozen=True)
class Family:
    """``draw(generator, units, shift)`` makes a pair whose true difference is ``shift``.

    ``scatter`` over the root of the number of units is the standard error of the mean difference, about.
    """

    draw: Callable[[Generator, int, float], Draw]
    scatter: float

    def errors(self, units: int, count: float) -> float:
        """Converts a number of standard errors to a difference."""
        return count * self.scatter / float(np.sqrt(units))


@lru_cache(maxsize=64)
def _names(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _normal(generator: Generator, units: int, shift: float) -> Draw:
    hardness = 3 * generator.standard_normal(units)
    ours, theirs = generator.standard_normal((2, units))
    return Draw(hardness + ours + shift, hardness + theirs)


def _lognormal(generator: Generator, units: int, shift: float) -> Draw:
    hardness, ours, theirs = np.exp(generator.standard_normal((3, units)))
    return Draw(hardness + ours + shift, hardness + theirs)


def _t3(generator: Generator, units: int, shift: float) -> Draw:
    hardness, ours, theirs = generator.standard_t(3, (3, units))
    return Draw(hardness + ours + shift, hardness + theirs)


CHANGING = 0.3
"""The fraction of answers that differ between two models of equal accuracy."""


def _binary(generator: Generator, units: int, shift: float) -> Draw:
    return Draw(*_answers(generator.random(units), shift), unit="score")


def _answers(uniform: Floats, shift: float) -> tuple[Floats, Floats]:
    """Right (1) or wrong (0) for variant and baseline; ``shift`` is the true difference of their accuracies."""
    changing = max(CHANGING, min(1.0, abs(shift)))
    gains = (changing + min(1.0, shift)) / 2
    variant_alone, baseline_alone = uniform < gains, (uniform >= gains) & (uniform < changing)
    both = (uniform >= changing) & (uniform < changing + (1 - changing) / 2)
    return (variant_alone | both).astype(float), (baseline_alone | both).astype(float)


def _clusters(generator: Generator, units: int) -> tuple[npt.NDArray[np.intp], tuple[str, ...]]:
    members = np.repeat(np.arange(units), generator.integers(1, 6, units))
    return members, tuple(map(str, members.tolist()))


def _clustered(generator: Generator, units: int, shift: float) -> Draw:
    """One to five items per cluster, which share half of their variance."""
    members, names = _clusters(generator, units)
    ours, theirs = generator.standard_normal((2, units))[:, members] + generator.standard_normal((2, len(members)))
    hardness = 3 * generator.standard_normal(len(members))
    return Draw(hardness + ours + shift, hardness + theirs, clusters=names)


def _clustered_binary(generator: Generator, units: int, shift: float) -> Draw:
    """One to five questions per cluster; half of them have their cluster's answers, the others their own."""
    members, names = _clusters(generator, units)
    own = generator.random(len(members)) < 0.5
    uniform = np.where(own, generator.random(len(members)), generator.random(units)[members])
    return Draw(*_answers(uniform, shift), unit="score", clusters=names)


def _tied(changed: float) -> Callable[[Generator, int, float], Draw]:
    """Only a fraction ``changed`` of the values differ, and they carry the whole difference."""

    def draw(generator: Generator, units: int, shift: float) -> Draw:
        hardness, ours, theirs = generator.standard_normal((3, units))
        touched = generator.random(units) < changed
        return Draw(hardness + touched * (ours + shift / changed), hardness + touched * theirs)

    return draw


def _windows(correlation: float) -> Callable[[Generator, int, float], Draw]:
    """Windows of one text: the differences of neighbours are correlated (AR(1))."""

    def draw(generator: Generator, units: int, shift: float) -> Draw:
        fresh = generator.standard_normal((2, units)) * np.sqrt(1 - correlation**2)
        fresh[:, 0] /= np.sqrt(1 - correlation**2)
        noise = lfilter([1.0], [1.0, -correlation], fresh)
        hardness = 3 * generator.standard_normal(units)
        return Draw(hardness + noise[0] + shift, hardness + noise[1], protocol={"stride": 512})

    return draw


def _skewed(windows: bool) -> Callable[[Generator, int, float], Draw]:
    """Exponential differences: most are small, some large."""

    def draw(generator: Generator, units: int, shift: float) -> Draw:
        hardness = 3 * generator.standard_normal(units)
        difference = generator.exponential(1.0, units) - 1 + shift
        return Draw(hardness + difference, hardness, protocol={"stride": 512} if windows else {})

    return draw


LOGNORMAL_SCATTER = float(np.sqrt(2 * (np.exp(2) - np.exp(1))))
FAMILIES = {
    "normal": Family(_normal, np.sqrt(2)),
    "lognormal": Family(_lognormal, LOGNORMAL_SCATTER),
    "t, 3 degrees": Family(_t3, np.sqrt(6)),
    "binary": Family(_binary, np.sqrt(CHANGING)),
    "clustered": Family(_clustered, 1.9),
    "clustered binary": Family(_clustered_binary, 0.5),
    "tied, half": Family(_tied(0.5), 1.0),
    "tied, 9 of 10": Family(_tied(0.1), np.sqrt(0.2)),
    "AR(1) windows": Family(_windows(0.5), np.sqrt(6)),
}
BEYOND = {
    "skewed": Family(_skewed(windows=False), 1.0),
    "skewed windows": Family(_skewed(windows=True), 1.0),
    "windows, correlation 0.7": Family(_windows(0.7), np.sqrt(2 * 1.7 / 0.3)),
}


MEANS_OF_ONE: dict[str, Callable[[Generator, int], Floats]] = {
    "normal": lambda generator, units: 1 + generator.standard_normal(units),
    "exponential": lambda generator, units: generator.exponential(1, units),
    "t, 3 degrees": lambda generator, units: 1 + generator.standard_t(3, units),
}


def share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found)


def false_alarms(family: Family, units: int, pairs: int, generator: Generator) -> float:
    """The fraction of pairs without a true difference that are called better or worse."""
    return share(family.draw(generator, units, 0.0).compare(NO_MARGIN).different for _ in range(pairs))


def false_equivalences(family: Family, units: int, pairs: int, generator: Generator) -> float:
    """The fraction of pairs that differ by the margin of four standard errors but are called equivalent."""
    margin = family.errors(units, 4)
    return share(family.draw(generator, units, margin).compare(margin).equivalent for _ in range(pairs))


def power(family: Family, units: int, pairs: int, generator: Generator) -> float:
    """The fraction of true differences of three standard errors that are called worse."""
    return _called_worse(family, units, family.errors(units, 3), pairs, generator)


def power_on_separated(family: Family, units: int, pairs: int, generator: Generator) -> float:
    """The same for differences that are obvious at a glance."""
    return _called_worse(family, units, family.errors(units, FAR), pairs, generator)


def _called_worse(family: Family, units: int, shift: float, pairs: int, generator: Generator) -> float:
    return share(family.draw(generator, units, shift).compare(NO_MARGIN).verdict == "worse" for _ in range(pairs))


def speed_alarms(units: int, pairs: int, generator: Generator, wider: float = 1.0, zeros: float = 0.0) -> float:
    """The fraction of false alarms for normal log-speeds; the variant's have ``wider`` times the standard deviation.

    A fraction ``zeros`` of the processes of either side has a speed of zero.
    """
    scatter = 0.01 * np.asarray([[wider], [1.0]])

    def draw() -> Comparison:
        speeds = np.exp(3 + scatter * generator.standard_normal((2, units)))
        ours, theirs = speeds * (generator.random((2, units)) >= zeros) if zeros else speeds
        return compare_speeds(ours.tolist(), theirs.tolist(), NO_MARGIN, ALPHA)

    return share(draw().different for _ in range(pairs))


def misses(units: int, pairs: int, generator: Generator, draw: Callable[[Generator, int], Floats]) -> list[float]:
    """How often a true mean of 1 exceeds the upper 95% limit: of t, of the bootstrap, and of the wider of the two."""
    sizes = np.ones(units)
    counts = np.zeros(3)
    for _ in range(pairs):
        values = draw(generator, units)
        bounds: list[Bound] = [clustered_t(values, sizes), bca(values, sizes)]
        bounds.append(Outer(bounds[0], bounds[1]))
        counts += [bound.ends(ALPHA)[1] < 1 for bound in bounds]
    return [float(count) / pairs for count in counts]


def allowed(level: float, pairs: int, chance: float = 1e-4) -> float:
    """The rate that a simulation of ``pairs`` pairs with true rate ``level`` exceeds only with that ``chance``."""
    return float(binom.isf(chance, pairs, level)) / pairs


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    seeds = iter(np.random.SeedSequence(4).spawn(1000))

    def grid(
        families: dict[str, Family], measure: Callable[[Family, int, int, Generator], float], counts: Sequence[int]
    ) -> None:
        _row(["n", *families], head=True)
        for units in counts:
            cells = [measure(family, units, pairs, np.random.default_rng(next(seeds))) for family in families.values()]
            _row([str(units), *(_percent(cell) for cell in cells)])

    limit = allowed(ALPHA, pairs)
    print(f"{pairs} pairs a cell; a level of {ALPHA:.0%} exceeds {limit:.1%} once in 10,000 cells.\n")
    print("## False alarms: no true difference, called better or worse\n")
    grid(FAMILIES, false_alarms, COUNTS)
    print("\n## False equivalence: a margin apart, called equivalent\n")
    grid({name: family for name, family in FAMILIES.items() if name != "tied, 9 of 10"}, false_equivalences, COUNTS)
    print("\n## Found: a true difference of three standard errors\n")
    grid(FAMILIES, power, COUNTS)
    print("\n## Found: separated data\n")
    plain = {name: family for name, family in FAMILIES.items() if not name.startswith("tied")}
    grid(plain, power_on_separated, (2, 4, 5, *COUNTS[2:]))
    print("\n## Speeds: false alarms, n processes a side\n")
    _row(["n", "alike", "one side twice as scattered"], head=True)
    for units in SPEED_COUNTS:
        cells = [speed_alarms(units, pairs, np.random.default_rng(next(seeds)), wider) for wider in (1.0, 2.0)]
        _row([str(units), *map(_percent, cells)])
    print("\n## Beyond the premises: false alarms\n")
    grid(BEYOND, false_alarms, COUNTS[2:])
    print("\n## Beyond the premises: false equivalence\n")
    grid({**BEYOND, "tied, 9 of 10": FAMILIES["tied, 9 of 10"]}, false_equivalences, COUNTS[2:])
    print("\n## Upper ends that miss: t, bootstrap, the outer of both\n")
    _row(["n", *(f"{name}: {bound}" for name in MEANS_OF_ONE for bound in ("t", "BCa", "outer"))], head=True)
    for units in (20, 30, 50, 100, 300):
        generator = np.random.default_rng(next(seeds))
        found = [misses(units, pairs, generator, draw) for draw in MEANS_OF_ONE.values()]
        _row([str(units), *(_percent(cell) for cells in found for cell in cells)])
    print("\n## Speeds that may be zero: false alarms, n processes a side\n")
    _row(["n", *(f"{zeros:.0%} of them zero" for zeros in ZEROS)], head=True)
    for units in SPEED_COUNTS:
        cells = [speed_alarms(units, pairs, np.random.default_rng(next(seeds)), zeros=zeros) for zeros in ZEROS]
        _row([str(units), *map(_percent, cells)])


def _percent(part: float) -> str:
    return f"{part:.1%}"


def _row(cells: Sequence[str], head: bool = False) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)
    if head:
        print(f"|{' ---: |' * len(cells)}")


if __name__ == "__main__":
    main()
