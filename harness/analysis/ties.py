"""The order in which a recommendation lists variants: by the objective, then by tie-breakers.

A variant that is 0.2% smaller than another is not better if it decodes at a twentieth of the speed. Therefore all
variants that cannot be distinguished from the best figure count as equal, and the other figures decide among them, one
after the other: quality, then speed, then size. They do so twice, first by large differences alone: 0.002 nat do not
make up for a twentieth of the speed either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.figures.ask import Reading, Ties, Use
from harness.figures.figure import Figure
from harness.figures.table import VariantRow
from harness.plugins import figures
from harness.stats.draws import Sampler
from harness.stats.estimate import Floats

SURE = 0.975
"""From this probability on, two figures are different: one side of a two-sided 95% interval."""


@dataclass(frozen=True)
class Tie:
    """A variant that the objective cannot tell from the one before it, and the tie-breaker: None if nothing decides.

    ``ours`` and ``theirs`` are the two figures that decided.
    """

    row: VariantRow
    decided_by: Figure[Any] | None
    ours: Reading | None = None
    theirs: Reading | None = None

    @property
    def sure(self) -> bool:
        """Whether the tie-breaker would decide the same way the next time: the two intervals do not overlap."""
        if self.decided_by is None:
            return True  # both are equally good
        mine, other = (reading and reading.estimate for reading in (self.ours, self.theirs))
        if not (mine and other) or None in (mine.low, mine.high, other.low, other.high):
            return False
        return bool(mine.high < other.low or other.high < mine.low)  # type: ignore[operator]


@dataclass
class Likeness:
    """One figure of several variants, and which of them it cannot distinguish from the best.

    It ignores differences up to ``ignored``, in the terms of the figure's ``Ties``: those that do not matter or are not
    large if it is a tie-breaker, none if it is the objective.
    """

    figure: Figure[Any]
    rows: Sequence[VariantRow]
    use: Use
    sampler: Sampler
    ignored: float
    _readings: dict[int, Reading] = field(default_factory=dict)
    _costs: dict[int, float] = field(default_factory=dict)
    _table: Floats | None = None
    _columns: dict[int, Floats] = field(default_factory=dict)

    def reading(self, index: int) -> Reading:
        """Computed on demand: tie-breakers are needed for few variants."""
        if index not in self._readings:
            self._readings[index] = self.figure.read(self.rows[index], self.use)
        return self._readings[index]

    def cost(self, index: int) -> float:
        """Lower is better; unmeasured figures come last."""
        cost = self._costs.get(index)
        if cost is None:
            estimate = self.reading(index).estimate
            cost = self._costs[index] = math.inf if estimate is None else self._sign * estimate.value
        return cost

    def decides(self, chosen: Iterable[int]) -> bool:
        """Whether it was measured of any of them; the reference may have it by definition, as no KL from itself."""
        return any(self.reading(each).estimate is not None for each in chosen if not self.rows[each].is_reference)

    def equal(self, ordered: Iterable[int]) -> list[int]:
        """The first of the indices, which are ordered by cost, and all that cannot be told from it."""
        others = iter(ordered)
        best = next(others)
        end = self._farthest(best)
        near = [best, *takewhile(lambda index: self.cost(index) <= end, others)]
        return self.alike(best, near) if len(near) > 1 else near

    @property
    def _sign(self) -> int:
        return 1 if self.figure.direction == "lower" else -1

    def _farthest(self, best: int) -> float:
        """The highest cost that may still count as equal."""
        estimate = self.reading(best).estimate
        if estimate is None:
            return math.inf
        end = estimate.high if self.figure.direction == "lower" else estimate.low
        reach = 0.0 if end is None else self._sign * (end - estimate.value)
        share, least = self._tolerance
        return self.cost(best) + max(reach, share * abs(self.cost(best)), least)

    def alike(self, best: int, others: Sequence[int]) -> list[int]:
        """Those of ``others`` that cannot be distinguished from ``best``, which no other beats."""
        places = np.asarray(others, dtype=np.intp)
        known = self._compared(best, places)
        mine, theirs = known[0, best], known[0, places]
        with np.errstate(invalid="ignore"):  # of two figures that were not measured
            gap = np.abs(mine - theirs)
            share, least = self._tolerance
            within = gap <= np.maximum(share * np.minimum(np.abs(mine), np.abs(theirs)), least)
        equal = (places == best) | (mine == theirs)
        alike = equal | (np.isfinite(gap) & within)
        (low, value, high), (lowest, middle, highest) = known[1:, places], known[1:, best]
        overlap = (lowest <= value) & (value <= highest) & (low <= middle) & (middle <= high)
        unsure = np.flatnonzero(overlap & np.isfinite(gap) & ~alike)
        if len(unsure):
            alike[unsure] = ~self._told_apart(best, places[unsure].tolist())
        return [int(place) for place in places[alike]]

    def rivals(self, first: int, others: Sequence[int]) -> list[int]:
        """Those of ``others`` that may be as good as ``first``, best first: their intervals overlap its own.

        Figures with errors in common, such as the sample of a text's windows, are told apart by draws nevertheless.
        """
        share, least = self._tolerance
        end = max(self._ends(first)[1], self.cost(first) + max(share * abs(self.cost(first)), least))
        near = sorted((index for index in others if self._ends(index)[0] <= end), key=self.cost)
        if not near or self.reading(first).influence is None:
            return near
        return [index for index, apart in zip(near, self._told_apart(first, near), strict=True) if not apart]

    def _ends(self, index: int) -> tuple[float, float]:
        """The lowest and the highest cost within the interval; of a figure without one, its cost."""
        estimate = self.reading(index).estimate
        if estimate is None or estimate.low is None or estimate.high is None:
            return self.cost(index), self.cost(index)
        low, high = sorted((self._sign * estimate.low, self._sign * estimate.high))
        return low, high

    def _compared(self, best: int, places: npt.NDArray[np.intp]) -> Floats:
        """Of every row: its cost, and the low end, value and high end of its interval, NaN without one: (4, rows).

        Filled for ``best`` and ``places``.
        """
        if self._table is None:
            self._table = np.full((4, len(self.rows)), math.nan)
        table = self._table
        for index in (best, *places[np.isnan(table[0, places])].tolist()):
            table[0, index] = self.cost(index)
            estimate = self.reading(index).estimate
            if estimate and estimate.low is not None and estimate.high is not None and estimate.low < estimate.high:
                table[1:, index] = estimate.low, estimate.value, estimate.high
        return table

    @cached_property
    def _tolerance(self) -> tuple[float, float]:
        """How far two costs may differ and still count as equal: a share of the smaller one, and at least so much."""
        ties = ties_of(self.figure)
        if ties.relative:
            return max(ties.tolerance, self.ignored), 0.0
        return ties.tolerance, self.ignored

    def _told_apart(self, best: int, others: Sequence[int]) -> npt.NDArray[np.bool_]:
        """By draws of the figures, so that shared errors, such as the sample of a text's windows, cancel out."""
        self._draw([others[0], best, *others[1:]])
        gaps = np.stack([self._columns[other] for other in others]) - self._columns[best]
        beyond = gaps > 0 if self.figure.direction == "lower" else gaps < 0
        found: npt.NDArray[np.bool_] = beyond.mean(axis=1) >= SURE
        return found

    def _draw(self, indices: Iterable[int]) -> None:
        """Draws the figures that were not drawn before, in this order."""
        new = [index for index in indices if index not in self._columns]
        readings = [self.reading(index) for index in new]
        drawn = [(each.estimate, each.influence, each.scale) for each in readings if each.estimate]
        self._columns.update(zip(new, self.sampler.columns(drawn).T, strict=True))


@dataclass(frozen=True)
class Order:
    """Variants ordered by an objective. ``steps`` begin with it; then large differences decide, then smaller ones."""

    rows: Sequence[VariantRow]
    steps: tuple[Likeness, ...]

    @property
    def objective(self) -> Likeness:
        return self.steps[0]

    def sorted(self, chosen: Sequence[int]) -> list[int]:
        """The indices of ``chosen``, best first."""
        return list(self.ranked(chosen))

    def ranked(self, chosen: Sequence[int]) -> Iterator[int]:
        """The same one after another: later ones are compared only when they are asked for."""
        return self._ranked(list(chosen), 0)

    def ties(self, ranked: Sequence[int]) -> tuple[Tie, ...]:
        """All of ``ranked``, best first, that the objective cannot tell from the first, and what decided instead."""
        if len(ranked) < 2:
            return ()
        equal = self.objective.equal(self._by_cost(ranked, self.objective))
        paths = self._paths(equal, 1)
        return tuple(self._tie(ranked[0], other, paths) for other in ranked[1:] if other in paths)

    def _ranked(self, left: list[int], step: int) -> Iterator[int]:
        """Group by group of those that this step cannot tell apart; within a group by the steps after it."""
        if len(left) == 1 or step == len(self.steps):
            yield from sorted(left, key=lambda index: self.rows[index].label)
            return
        for equal in self._groups(left, self.steps[step]):
            yield from self._ranked(equal, step + 1)

    def _paths(self, left: list[int], step: int) -> dict[int, tuple[int, ...]]:
        """For each index, the number of its group at this step and, within that group, at the steps after it."""
        if len(left) == 1 or step == len(self.steps):
            return dict.fromkeys(left, ())
        return {
            index: (number, *path)
            for number, equal in enumerate(self._groups(left, self.steps[step]))
            for index, path in self._paths(equal, step + 1).items()
        }

    def _groups(self, left: Sequence[int], likeness: Likeness) -> Iterator[list[int]]:
        """The best and all that cannot be told from it, then the best of the rest, and so on."""
        if not likeness.decides(left):
            yield list(left)
            return
        ordered = self._by_cost(left, likeness)
        done: set[int] = set()
        for place, index in enumerate(ordered):
            if index not in done:
                equal = likeness.equal(ordered[at] for at in range(place, len(ordered)) if ordered[at] not in done)
                done.update(equal)
                yield equal

    def _by_cost(self, chosen: Iterable[int], likeness: Likeness) -> list[int]:
        return sorted(chosen, key=lambda index: (likeness.cost(index), self.rows[index].label))

    def _tie(self, first: int, other: int, paths: dict[int, tuple[int, ...]]) -> Tie:
        """``paths`` are those after the objective."""
        for step, ours, theirs in zip(self.steps[1:], paths[first], paths[other], strict=False):
            if ours != theirs:
                return Tie(self.rows[other], step.figure, step.reading(first), step.reading(other))
        return Tie(self.rows[other], None)


def ties_of(figure: Figure[Any]) -> Ties:
    return figure.ask.ties if figure.ask else Ties()


def deciding(objective: Figure[Any]) -> list[Figure[Any]]:
    """The tie-breakers for variants that the objective cannot tell apart, by priority."""
    ranked = [(ties_of(each).rank, each) for each in figures().values()]
    chain = sorted(((rank, each) for rank, each in ranked if rank is not None), key=lambda pair: pair[0])
    same = (objective.name, *ties_of(objective).stands_for)
    return [each for _, each in chain if each.name not in same]


def order_by(objective: Figure[Any], rows: Sequence[VariantRow], use: Use, draws: int) -> Order:
    """``draws`` is the number of draws by which two figures are told apart."""
    sampler = Sampler(draws)
    chain = [(ties_of(each), Likeness(each, rows, use, sampler, 0.0)) for each in deciding(objective)]
    large = [replace(each, ignored=ties.large) for ties, each in chain if ties.large is not None]
    fine = [replace(each, ignored=ties.harmless) for ties, each in chain]  # what was read is shared with ``large``
    return Order(tuple(rows), (Likeness(objective, rows, use, sampler, 0.0), *large, *fine))
