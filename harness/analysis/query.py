"""What a user asks of a variant: limits that it must meet, and the objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError, refuse_unknown
from harness.figures.ask import Option
from harness.figures.figure import Figure
from harness.figures.memory import MEMORY
from harness.figures.quality import PERPLEXITY_CHANGE
from harness.figures.size import STORED_BYTES
from harness.figures.table import Table
from harness.figures.tasks import ACCURACY_DROP
from harness.plugins import limit_options, objectives

PERPLEXITY_INCREASE = 0.01
HARMLESS_DROP = 0.01
"""The quality loss that the default query considers harmless."""


@dataclass(frozen=True)
class Limit:
    """A bound on one figure, in the figure's unit."""

    figure: Figure[Any]
    bound: float

    @property
    def option(self) -> str:
        """The name that a user writes: ``max-kl``."""
        return self.figure.limit.name


@dataclass(frozen=True)
class Query:
    """Limits, and the objective. ``at`` names a point of the grid, as a report does, by some of its parts.

    ``context`` (prompt and answer) and ``batch`` are what memory must hold; those of the point if None.
    ``allow_labelled`` admits variants that were calibrated on the evaluation text, and invalid runs. ``level`` is the
    load at which a server's figures are read: the highest that was measured if None, and for goodput the best.
    """

    limits: tuple[Limit, ...] = ()
    objective: Figure[Any] = STORED_BYTES
    at: str | None = None
    context: int | None = None
    batch: int | None = None
    allow_labelled: bool = False
    level: float | None = None

    @property
    def figures(self) -> tuple[Figure[Any], ...]:
        """All figures that it uses."""
        return (self.objective, *(limit.figure for limit in self.limits))


def default_limits(table: Table) -> tuple[Limit, ...]:
    """The recipe's memory budget, if any, and a perplexity at most 1% higher, or otherwise accuracies 1 point lower."""
    limits = []
    if table.budget_bytes is not None:
        limits.append(Limit(MEMORY, table.budget_bytes))
    if any(row.perplexity_change for row in table.rows):
        limits.append(Limit(PERPLEXITY_CHANGE, PERPLEXITY_INCREASE))
    elif any(score.change for row in table.rows for score in row.tasks):
        limits.append(Limit(ACCURACY_DROP, HARMLESS_DROP))
    return tuple(limits)


def parse_limits(options: Mapping[str, Option]) -> tuple[Limit, ...]:
    """From ``max_memory="8GiB"``, ``max_perplexity_increase="1%"`` and so on; None sets no limit.

    Raises UsageError for an unknown name, and for a value that is not a positive number of the right kind.
    """
    known = limit_options()
    limits = []
    for name, value in options.items():
        if name not in known:
            refuse_unknown("limit", name, known)
        if value is not None:
            option = known[name].limit
            limits.append(Limit(known[name], option.parse(option.name, value)))
    return tuple(limits)


def parse_objective(minimize: str | None, maximize: str | None) -> Figure[Any]:
    """The objective; stored bytes if none is named. Raises UsageError for two, and for an unknown one."""
    if minimize is not None and maximize is not None:
        raise UsageError("--minimize and --maximize: give one of them; the other can be a limit")
    for option, name, direction in (("--minimize", minimize, "lower"), ("--maximize", maximize, "higher")):
        if name is not None:
            known = objectives(direction)
            return known[name] if name in known else refuse_unknown(option, name, known)
    return STORED_BYTES


def count(option: str, value: Option) -> int | None:
    """A number of tokens or sequences: whole, at least one. Raises UsageError otherwise."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"--{option}: expected a whole number above zero, not {value!r}")
    return value
