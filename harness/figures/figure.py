"""Figure: the one declaration of a number shown to users. Everything that shows or judges the number derives from it.

The report's columns, the CSV and Parquet files, model cards and MLflow, the gates of ``compare``, the series of
``history``, the limits and objectives of ``recommend`` and the axes of plots all read these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from harness.figures.ask import Ask, LimitOption, Reading, Use, counted, measured
from harness.figures.formats import NumberStyle
from harness.figures.gate import Gate
from harness.figures.statistic import Count, Items, PerProcess
from harness.figures.table import GridPoint, Load, Table, VariantRow
from harness.stats.estimate import Estimate

Value = Estimate | float | str | None
"""A figure of one variant: an estimate with an interval, a plain number, or a word; None if it was not measured."""
Direction = Literal["lower", "higher", "neither"]
"""Which values of a figure are better."""
LOG_FROM_RATIO = 20
"""An axis is logarithmic if its largest value exceeds its smallest by more than this factor."""


class Place(Protocol):
    """Where a figure is measured: a point of the grid, a task, a phase of a run."""

    @property
    def name(self) -> str:
        """As a part of a column's name."""

    @property
    def label(self) -> str:
        """As readers see it."""


@dataclass(frozen=True)
class Whole:
    """The only place of a figure that a variant has once."""

    name: str = ""
    label: str = ""


@dataclass(frozen=True)
class Note:
    """A remark below a figure; ``detail`` stands in brackets behind its ``word``, and is left out where room is short.

    A comparison's note has the verdict as its word.
    """

    word: str
    detail: str = ""

    @property
    def text(self) -> str:
        return f"{self.word} ({self.detail})" if self.detail else self.word


WHOLE = Whole()
P = TypeVar("P", bound=Place)


def once(table: Table) -> tuple[Whole, ...]:
    """The places of a figure that a variant has once."""
    return (WHOLE,)


def grid(table: Table) -> tuple[GridPoint, ...]:
    """The places of a figure that is measured at every point of the grid."""
    return table.grid


def at_first_point(table: Table, place: Any) -> bool:
    """Whether the place is at the first point of the grid, the only one that the main table shows."""
    return table.grid[:1] == (getattr(place, "point", place),)


@dataclass(frozen=True)
class Axis:
    """How a figure is drawn along the axis of a plot.

    ``title`` may contain ``{place}`` and ``{unit}``. ``log`` decides from the values in the table whether the axis is
    logarithmic; it then begins at ``least``, in the figure's own unit, because a logarithm has no zero, and
    ``log_title`` replaces ``title``. ``from_zero``: a linear axis begins at zero.
    """

    title: str = ""
    log: Callable[[Iterable[float]], bool] = lambda values: False
    least: float = 0.0
    log_title: str | None = None
    from_zero: bool = False


@dataclass(frozen=True)
class Figure(Generic[P]):
    """One number of a variant.

    ``name`` is unique; a gate and a series of ``history`` use it. ``value`` computes the figure from a row at one of
    the ``places`` that a table has for it; if it is None, the figure follows from ``statistic``.

    For readers: ``group`` and ``heading`` head its column, ``help`` explains it, ``format`` is how it is written,
    ``notes`` are printed below it. ``heading`` and ``help`` may contain ``{place}``. ``shown`` is False if only
    programs read it; a page shows the ``key`` figures at first and the others when asked to. ``column`` is the name of
    its column in the CSV file, with ``{place}`` in it, and None if it has none. ``interval`` says that values are
    estimates, which take three columns there.

    For judging: ``direction`` says which values are better; ``statistic`` is how the figure is computed from the
    evidence of a record and which test compares two of them; with ``gate`` it can fail a comparison, with ``ask``
    ``recommend`` can limit or optimize it. ``hub`` is the metric's type in a model card, if the hub has one.
    """

    name: str
    group: str
    heading: str | Callable[[Table, P], str]
    help: str | Callable[[Table, P], str]
    value: Callable[[VariantRow, P], Value] | None = None
    direction: Direction = "neither"
    format: NumberStyle | Callable[[Table, P], NumberStyle] = field(default_factory=NumberStyle)
    places: Callable[[Table], Iterable[P]] | None = None
    column: str | None = ""
    shown: bool | Callable[[Table, P], bool] = True
    key: bool = False
    interval: bool = False
    notes: Callable[[VariantRow, P], tuple[Note, ...]] = lambda row, place: ()
    statistic: Items | PerProcess | Count | None = None
    gate: Gate | None = None
    ask: Ask | None = None
    axis: Axis | None = None
    hub: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a contradictory declaration; the author of a plugin reads the message."""
        if self.value is None and self.statistic is None:
            raise ValueError(f"figure {self.name!r}: neither 'value' nor 'statistic' says where it comes from")
        if self.gate and self.statistic is None:
            raise ValueError(f"figure {self.name!r}: a gate needs a 'statistic' by which two sides are compared")
        if self.direction == "neither" and (self.ask or isinstance(self.statistic, PerProcess)):
            raise ValueError(f"figure {self.name!r}: say which 'direction' is better, lower or higher")

    @property
    def places_in(self) -> Callable[[Table], Iterable[P]]:
        """The function from a table to the figure's places: ``places``, or those of its statistic."""
        if self.places is not None:
            return self.places
        by_point = isinstance(self.statistic, PerProcess) and not self.statistic.pooled
        return grid if by_point else once  # type: ignore[return-value]

    def taken_at(self, table: Table) -> tuple[P, ...]:
        return table.remember(("places", self.name), lambda: tuple(self.places_in(table)))

    def of(self, row: VariantRow, place: P) -> Value:
        """The figure of one variant; computed once for each row and place."""
        return row.remember((self.name, place), lambda: self.compute([row], place)[0])

    def compute(self, rows: Sequence[VariantRow], place: P) -> tuple[Value, ...]:
        """The figure of each variant, for callers that keep what they get."""
        if (value := self.value) is not None:
            return tuple([value(row, place) for row in rows])
        assert self.statistic is not None
        point = place if isinstance(place, GridPoint | Load) else None
        return tuple([self.statistic.value(row, point) for row in rows])

    @property
    def limit(self) -> LimitOption:
        """The option that sets a limit on it. Raises ValueError if there is none."""
        if self.ask is None or self.ask.limit is None:
            raise ValueError(f"no limit can be set on {self.name!r}")
        return self.ask.limit

    def column_name(self, place: P) -> str | None:
        """The name of its column in the CSV file; None if it has none."""
        if self.column is None:
            return None
        pattern = self.column or (f"{self.name}_{{place}}" if place.name else self.name)
        return pattern.replace("{place}", place.name)

    def written(self, table: Table, place: P) -> NumberStyle:
        return self.format(table, place) if callable(self.format) else self.format

    def headed(self, table: Table, place: P) -> str:
        return _text(self.heading, table, place)

    def explained(self, table: Table, place: P) -> str:
        return _text(self.help, table, place)

    def visible(self, table: Table, place: P) -> bool:
        """Whether readers see its column, not only programs."""
        return self.shown(table, place) if callable(self.shown) else self.shown

    def read(self, row: VariantRow, use: Use) -> Reading:
        """The figure by which a variant is chosen for a use, and its basis."""
        if self.ask and self.ask.read:
            return self.ask.read(row, use)
        if self.ask and self.ask.of_baseline is not None and row.is_reference:
            return counted(self.ask.of_baseline, "the baseline")
        places = self.taken_at(use.table)
        place = next((each for each in places if each == use.point), places[0] if len(places) == 1 else None)
        value = None if place is None else self.of(row, place)
        if isinstance(value, str):
            return Reading(None, value)
        if value is None or isinstance(value, Estimate):
            return measured(value)
        return counted(value)


def _text(text: str | Callable[[Table, P], str], table: Table, place: P) -> str:
    return text(table, place) if callable(text) else text.replace("{place}", place.label)
