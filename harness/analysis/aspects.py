"""The figures of a variant by which one is chosen: each with its interval, its direction, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.figures.derived.energies import per_million_tokens
from harness.figures.table import GridPoint, Speed, Table, TaskScore, VariantRow
from harness.stats.draws import Scale
from harness.stats.estimate import Estimate
from harness.stats.influence import Influence
from harness.stats.pareto import Direction
from harness.stats.repeats import FEWEST_PROCESSES, too_few

AspectName = Literal[
    "memory",
    "bytes",
    "perplexity",
    "kl",
    "agreement",
    "accuracy_drop",
    "accuracy",
    "decode",
    "prefill",
    "energy",
    "cost",
]

QUALITY: frozenset[AspectName] = frozenset({"perplexity", "kl", "agreement", "accuracy_drop", "accuracy"})
"""What is measured relative to the baseline's quality."""


@dataclass(frozen=True)
class Place:
    """Where memory, speed and energy are looked at; ``tokens`` are those of prompt and answer together, in each row."""

    table: Table
    point: GridPoint | None
    batch: int
    tokens: int

    @property
    def measured(self) -> bool:
        """Whether as many rows of as many tokens were run; else memory is worked out from fewer."""
        points = self.table.grid
        return any(
            point.batch_size >= self.batch and point.prompt_tokens + point.new_tokens >= self.tokens for point in points
        )


@dataclass(frozen=True)
class Figure:
    """A figure of one variant. ``basis`` says what it rests on where that is not plain, or why there is none.

    What is counted has an interval without width. ``influence`` is that of the text's windows; ``scale`` that on
    which the error is even.
    """

    estimate: Estimate | None
    basis: str = ""
    influence: Influence | None = None
    scale: Scale = "linear"

    @property
    def bounded(self) -> bool:
        """Whether there is an interval; of what was measured once there is none."""
        return self.estimate is not None and self.estimate.low is not None and self.estimate.high is not None


@dataclass(frozen=True)
class Aspect:
    """Which end of a figure is wanted, and where it comes from."""

    better: Direction
    figure: Callable[[VariantRow, Place], Figure]


def exact(value: float, basis: str = "") -> Figure:
    """A count: its interval is itself."""
    return Figure(Estimate(value, value, value, 1, "exact"), basis)


def _bytes(row: VariantRow, place: Place) -> Figure:
    """Stored weights, scales included, as loaded."""
    return Figure(None, "not measured") if row.stored_bytes is None else exact(row.stored_bytes)


def _kl(row: VariantRow, place: Place) -> Figure:
    """Mean KL(baseline ‖ variant), nat per token; the baseline's is zero."""
    return exact(0, "the baseline") if row.is_baseline else _measured(row.kl_mean, influence=row.kl_influence)


def _perplexity(row: VariantRow, place: Place) -> Figure:
    """The change of perplexity against the baseline, a fraction, paired; the baseline's is zero."""
    if row.is_baseline:
        return exact(0, "the baseline")
    lacking = "not measured" if row.perplexity is None else "no like baseline to compare with"
    found = _measured(row.perplexity_change, lacking=lacking, influence=row.perplexity_influence)
    return replace(found, scale="log1p")


def _decode(row: VariantRow, place: Place) -> Figure:
    """Tokens per second of decoding."""
    return _speed(row, place, lambda speed: speed.decode_tok_per_s)


def _memory(row: VariantRow, place: Place) -> Figure:
    """The whole of generating: worked out from its measured parts, else the highest peak, else the weights alone.

    The last, and a peak of less than is asked for, are lower bounds: their interval has no upper end.
    """
    part = row.footprint
    if part is None:
        return _peak(row, place)
    if part.context_limit is not None and place.tokens > part.context_limit:
        return Figure(None, f"the model reads at most {part.context_limit} tokens")
    return exact(part.bytes(place.batch, place.tokens))


def _peak(row: VariantRow, place: Place) -> Figure:
    found = [peak for peak in row.peaks if peak.run == "performance" and peak.phase in ("prefill", "decode")]
    on_gpu = [peak for peak in found if peak.source.startswith(("cuda", "NVML"))]
    highest = max((peak.bytes for peak in on_gpu or found), default=None)
    if highest is not None:
        return _at_least(highest, "the highest peak of its speed runs", certain=place.measured)
    if row.stored_bytes is None:
        return Figure(None, "not measured")
    return _at_least(row.stored_bytes, "its weights alone; generating takes more", certain=False)


def _at_least(count: int, basis: str, certain: bool) -> Figure:
    return Figure(Estimate(count, count, count if certain else math.inf, 1, "lower bound"), basis)


def _agreement(row: VariantRow, place: Place) -> Figure:
    return exact(1, "the baseline") if row.is_baseline else _measured(row.top1_agreement)


def _accuracy_drop(row: VariantRow, place: Place) -> Figure:
    """The largest drop of all tasks, in points of a score between 0 and 1; its interval is that of the worst case."""
    changes = _changes(row, place)
    if isinstance(changes, Figure):
        return changes
    drops = {score.key.label: _negative(change) for score, change in changes}
    worst = max(drops, key=lambda name: drops[name].value)
    lows, highs = [drop.low for drop in drops.values()], [drop.high for drop in drops.values()]
    known = all(low is not None for low in lows)
    return Figure(
        replace(
            drops[worst],
            low=max(low for low in lows if low is not None) if known else None,
            high=max(high for high in highs if high is not None) if known else None,
        ),
        worst,
    )


def _accuracy(row: VariantRow, place: Place) -> Figure:
    """The mean change of all tasks' scores; their errors are taken to be independent."""
    changes = _changes(row, place)
    if isinstance(changes, Figure):
        return changes
    found = [change for _, change in changes]
    count, mean = len(found), sum(change.value for change in found) / len(found)
    low = _error([change.low for change in found], found)
    high = _error([change.high for change in found], found)
    known = low is not None and high is not None
    estimate = Estimate(
        value=mean,
        low=mean - (low or 0) if known else None,
        high=mean + (high or 0) if known else None,
        n=min(change.n for change in found),
        method="of the mean of independent tasks",
    )
    return Figure(estimate, f"mean of {count} tasks")


def _error(ends: Sequence[float | None], found: Sequence[Estimate]) -> float | None:
    """How far the mean's interval reaches to one side; None where an end is not known."""
    reaches = [end - change.value for end, change in zip(ends, found, strict=True) if end is not None]
    return math.hypot(*reaches) / len(found) if len(reaches) == len(found) else None


def _changes(row: VariantRow, place: Place) -> list[tuple[TaskScore, Estimate]] | Figure:
    """Each task's headline score against the baseline's, higher being better; or a figure that says what is lacking."""
    wanted = {
        score.key: score
        for other in place.table.rows
        for score in other.tasks
        if score.headline and score.key.higher_is_better
    }
    if not wanted:
        return Figure(None, "no task with an accuracy was run")
    found = []
    for key in wanted:
        score = row.task(key)
        if score is None:
            return Figure(None, f"{key.label} not measured")
        change = Estimate(0, 0, 0, score.estimate.n, "the baseline") if row.is_baseline else score.change
        if change is None:
            return Figure(None, f"{key.label}: no like baseline to compare with")
        found.append((score, change))
    return found


def _negative(estimate: Estimate) -> Estimate:
    low, high = estimate.low, estimate.high
    return replace(
        estimate,
        value=0 - estimate.value,
        low=None if high is None else 0 - high,
        high=None if low is None else 0 - low,
    )


def _prefill(row: VariantRow, place: Place) -> Figure:
    return _speed(row, place, lambda speed: speed.prefill_tok_per_s)


def _energy(row: VariantRow, place: Place) -> Figure:
    """Joules per decoded token, power at rest taken off; the GPU's where the table has any, else the CPU's."""
    if place.point is None:
        return Figure(None, "not measured")
    sources = {each.source for other in place.table.rows for each in other.energies}
    source = "NVML" if "NVML" in sources else next(iter(sorted(sources)), "")
    found = row.energy_at(place.point, source)
    return _measured(found.decode_j_per_tok if found else None, source)


def _cost(row: VariantRow, place: Place) -> Figure:
    """Of a million decoded tokens, in the currency of the recipe's price."""
    if place.table.price is None:
        return Figure(None, "the recipe names no price")
    decode = _decode(row, place)
    speed = decode.estimate
    cost = _measured(per_million_tokens(speed, place.table.price.per_hour) if speed else None, decode.basis)
    return replace(cost, scale="log")


def _speed(row: VariantRow, place: Place, pick: Callable[[Speed], Estimate | None]) -> Figure:
    """Without an interval where one process was timed: that of its iterations says nothing of the next process."""
    speed = row.speed_at(place.point) if place.point else None
    found = pick(speed) if speed else None
    if found is None or found.n >= FEWEST_PROCESSES:
        return replace(_measured(found), scale="log")
    why = too_few(found.n)
    return replace(_measured(replace(found, low=None, high=None, method=why), why), scale="log")


def _measured(
    estimate: Estimate | None, basis: str = "", lacking: str = "not measured", influence: Influence | None = None
) -> Figure:
    """What is no number was not measured."""
    if estimate is None or math.isnan(estimate.value):
        return Figure(None, lacking)
    return Figure(estimate, basis, influence)


ASPECTS: Mapping[AspectName, Aspect] = {
    "memory": Aspect("lower", _memory),
    "bytes": Aspect("lower", _bytes),
    "perplexity": Aspect("lower", _perplexity),
    "kl": Aspect("lower", _kl),
    "agreement": Aspect("higher", _agreement),
    "accuracy_drop": Aspect("lower", _accuracy_drop),
    "accuracy": Aspect("higher", _accuracy),
    "decode": Aspect("higher", _decode),
    "prefill": Aspect("higher", _prefill),
    "energy": Aspect("lower", _energy),
    "cost": Aspect("lower", _cost),
}
