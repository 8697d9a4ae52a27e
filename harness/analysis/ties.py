"""The order in which a recommendation lists variants: by what is to be best, and what decides among equals.

Of two variants the one that is 0.2% smaller is not the better one where it decodes at a twentieth of the speed. So the
best figure stands for all that cannot be told from it, and among these the other figures decide, one after the other:
quality, then speed, then size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from harness.analysis.aspects import ASPECTS, AspectName, Figure, Place
from harness.figures.speed import HARMLESS as SAME_SPEED
from harness.figures.table import VariantRow
from harness.stats.draws import Luck
from harness.stats.estimate import Floats
from harness.stats.pareto import Direction

SURE = 0.975
"""From here on a difference is called one: what 95% two-sided leave to one side."""
SIZES = ("bytes", "memory")
SIZE_TOLERANCE = 0.01
"""Two sizes are equal within 1%. They are counted without noise, but nobody ships by such a difference: formats of the
same number of bits differ by it in how they keep their scales, and what generating takes is only known to 5%
(``footprint.SPARE``)."""
CHAIN: tuple[AspectName, ...] = ("kl", "perplexity", "accuracy", "decode", "prefill", "bytes")
"""What decides among equals, in this order."""
HARMLESS = {"kl": 0.001, "perplexity": 0.01, "accuracy": 0.01}
"""Differences of quality that do not matter, as in the report's verdicts: nat, and parts of one."""


@dataclass(frozen=True)
class Tie:
    """A variant that the objective does not tell from the one before it, and what did: None where nothing does.

    ``ours`` and ``theirs`` are the two figures that decided.
    """

    row: VariantRow
    decided_by: AspectName | None
    ours: Figure | None = None
    theirs: Figure | None = None

    @property
    def sure(self) -> bool:
        """Whether what decided would decide alike the next time: the two intervals do not overlap."""
        if self.decided_by is None:
            return True  # either is as good
        mine, other = (figure and figure.estimate for figure in (self.ours, self.theirs))
        if not (mine and other) or None in (mine.low, mine.high, other.low, other.high):
            return False
        return bool(mine.high < other.low or other.high < mine.low)  # type: ignore[operator]


@dataclass
class Likeness:
    """One aspect of several variants, and which of them it cannot tell from one that is best.

    ``harmless`` says that differences which do not matter count for none: of what is to be best they do not.
    """

    aspect: AspectName
    rows: Sequence[VariantRow]
    place: Place
    luck: Luck
    harmless: bool
    _figures: dict[int, Figure] = field(default_factory=dict)
    _columns: dict[int, Floats] = field(default_factory=dict)

    @property
    def better(self) -> Direction:
        return ASPECTS[self.aspect].better

    def figure(self, index: int) -> Figure:
        """Worked out when asked for: what decides among equals is of interest of few."""
        if index not in self._figures:
            self._figures[index] = ASPECTS[self.aspect].figure(self.rows[index], self.place)
        return self._figures[index]

    def cost(self, index: int) -> float:
        """Less is better; what was not measured is last."""
        estimate = self.figure(index).estimate
        return math.inf if estimate is None else self._sign * estimate.value

    def equal(self, ordered: Sequence[int]) -> list[int]:
        """Of indices in the order of their costs the first, and all that cannot be told from it."""
        best = ordered[0]
        end = self._farthest(best)
        near = takewhile(lambda index: self.cost(index) <= end, ordered)
        return [index for index in near if self.alike(best, index)]

    @property
    def _sign(self) -> int:
        return 1 if self.better == "lower" else -1

    def _farthest(self, best: int) -> float:
        """The highest cost of any that may be alike."""
        estimate = self.figure(best).estimate
        if estimate is None:
            return math.inf
        end = estimate.high if self.better == "lower" else estimate.low
        reach = 0.0 if end is None else self._sign * (end - estimate.value)
        return self.cost(best) + max(reach, self._tolerance(best, best))

    def alike(self, best: int, other: int) -> bool:
        """Whether ``other`` cannot be told from ``best``, which no other beats."""
        if best == other or self.cost(best) == self.cost(other):
            return True
        gap = abs(self.cost(best) - self.cost(other))
        if not math.isfinite(gap):
            return False
        return gap <= self._tolerance(best, other) or (self._overlap(best, other) and not self._told_apart(best, other))

    def _tolerance(self, best: int, other: int) -> float:
        least = min(abs(self.cost(best)), abs(self.cost(other)))
        if self.aspect in SIZES:
            return SIZE_TOLERANCE * least
        if not self.harmless:
            return 0.0
        return SAME_SPEED * least if self.aspect in ("decode", "prefill") else HARMLESS.get(self.aspect, 0.0)

    def _overlap(self, best: int, other: int) -> bool:
        """Whether each one's figure lies in the other's interval."""
        return self._holds(best, other) and self._holds(other, best)

    def _holds(self, one: int, other: int) -> bool:
        mine, theirs = self.figure(one).estimate, self.figure(other).estimate
        if mine is None or theirs is None or mine.low is None or mine.high is None:
            return False
        return mine.low < mine.high and mine.low <= theirs.value <= mine.high

    def _told_apart(self, best: int, other: int) -> bool:
        """By draws of both figures: what variants share, such as the luck of a text's windows, does not count."""
        gap = self._column(other) - self._column(best)
        return float((gap > 0).mean() if self.better == "lower" else (gap < 0).mean()) >= SURE

    def _column(self, index: int) -> Floats:
        if index not in self._columns:
            figure = self.figure(index)
            assert figure.estimate is not None
            self._columns[index] = self.luck.column(figure.estimate, figure.influence, figure.scale)
        return self._columns[index]


@dataclass(frozen=True)
class Order:
    """Variants by an objective. ``steps`` begin with the objective; those after it decide among its equals."""

    rows: Sequence[VariantRow]
    steps: tuple[Likeness, ...]

    @property
    def objective(self) -> Likeness:
        return self.steps[0]

    def sorted(self, chosen: Sequence[int]) -> list[int]:
        """The indices of ``chosen``, best first."""
        paths = self._paths(list(chosen), 0)
        return sorted(chosen, key=lambda index: (paths[index], self.rows[index].label))

    def ties(self, chosen: Sequence[int]) -> tuple[Tie, ...]:
        """Of ``chosen`` all that the objective cannot tell from the first, in order, and what decided instead."""
        paths = self._paths(list(chosen), 0)
        ranked = self.sorted(chosen)
        equal = [index for index in ranked[1:] if paths[index][:1] == paths[ranked[0]][:1]]
        return tuple(self._tie(ranked[0], other, paths) for other in equal)

    def _paths(self, left: list[int], step: int) -> dict[int, tuple[int, ...]]:
        """Of each index, the number of its group at this step and, among its equals, at the steps after it."""
        if len(left) == 1 or step == len(self.steps):
            return dict.fromkeys(left, ())
        likeness = self.steps[step]
        left = sorted(left, key=lambda index: (likeness.cost(index), self.rows[index].label))
        paths: dict[int, tuple[int, ...]] = {}
        number = 0
        while left:
            equal = likeness.equal(left)
            within = self._paths(equal, step + 1)
            paths |= {index: (number, *within[index]) for index in equal}
            left = [index for index in left if index not in paths]
            number += 1
        return paths

    def _tie(self, first: int, other: int, paths: dict[int, tuple[int, ...]]) -> Tie:
        for step, ours, theirs in zip(self.steps, paths[first], paths[other], strict=False):
            if ours != theirs:
                return Tie(self.rows[other], step.aspect, step.figure(first), step.figure(other))
        return Tie(self.rows[other], None)


def order_by(objective: AspectName, rows: Sequence[VariantRow], place: Place, draws: int) -> Order:
    """``draws`` say how well two figures are told apart."""
    luck = Luck(draws)
    decoding = objective in ("decode", "cost")
    chain = [each for each in CHAIN if each != objective and not (each == "decode" and decoding)]
    steps = [
        Likeness(aspect, rows, place, luck, harmless=number > 0) for number, aspect in enumerate((objective, *chain))
    ]
    return Order(tuple(rows), tuple(steps))
