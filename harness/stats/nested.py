"""Means of nested groups, partially pooled: a group with few values leans on the groups around it.

The model is y = o₀ + o₁(group) + o₂(subgroup) + … + noise, all independent and normal with known spreads and mean zero.
Its posterior is exact: messages pass up and down the tree of groups (Pearl, Probabilistic Reasoning in Intelligent
Systems, 1988, chapter 4.3).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

Path = tuple[Hashable, ...]
"""The names of a value's group at each level, the widest first."""


@dataclass(frozen=True)
class GroupMean:
    """The mean of a group as far as the values tell, and the variance of what they leave open, without the noise."""

    mean: float
    variance: float


@dataclass
class _Group:
    """What the values in a group say about its mean: ``weighted`` / ``precision``, with the variance 1 / ``precision``.

    ``count`` is the number of values.
    """

    precision: float = 0.0
    weighted: float = 0.0
    count: int = 0
    parts: dict[Hashable, _Group] = field(default_factory=dict)

    def above(self, spread: float) -> tuple[float, float]:
        """What it says about the mean of the group around it, from which groups differ by ``spread``."""
        if self.precision == 0:
            return 0.0, 0.0
        precision = 1 / (1 / self.precision + spread**2)
        return precision, precision * self.weighted / self.precision


class NestedMeans:
    """Estimates of group means.

    ``spreads`` are the standard deviations of the offsets: of the whole from zero, of the widest groups, and so on.
    ``noise`` is that of a single value.
    """

    def __init__(self, values: Iterable[tuple[Path, float]], spreads: Sequence[float], noise: float) -> None:
        """Raises ValueError for a path that does not have one name per spread after the first."""
        self._spreads = spreads
        self._whole = _Group()
        for path, value in values:
            if len(path) != len(spreads) - 1:
                raise ValueError(f"{path} names {len(path)} groups, and there are spreads of {len(spreads) - 1}")
            group = self._whole
            group.count += 1
            for name in path:
                group = group.parts.setdefault(name, _Group())
                group.count += 1
            group.precision += noise**-2
            group.weighted += value * noise**-2
        self._sum_up(self._whole, 1)

    def _sum_up(self, group: _Group, level: int) -> None:
        for part in group.parts.values():
            self._sum_up(part, level + 1)
            precision, weighted = part.above(self._spreads[level])
            group.precision += precision
            group.weighted += weighted

    def estimate(self, path: Path) -> GroupMean:
        """The mean of a group of any level, which need not have values."""
        mean, variance = 0.0, self._spreads[0] ** 2
        group = self._whole
        for name, spread in zip(path, self._spreads[1:], strict=False):
            part = group.parts.get(name, _Group())
            own_precision, own_weighted = part.above(spread)  # counted once: further down
            precision = 1 / variance + group.precision - own_precision
            mean = (mean / variance + group.weighted - own_weighted) / precision
            variance = 1 / precision + spread**2
            group = part
        precision = 1 / variance + group.precision
        return GroupMean((mean / variance + group.weighted) / precision, 1 / precision)

    def counts(self, path: Path) -> tuple[int, ...]:
        """How many values there are in all, in the widest group of the path, and so on."""
        counts = [self._whole.count]
        group = self._whole
        for name in path:
            group = group.parts.get(name, _Group())
            counts.append(group.count)
        return tuple(counts)
