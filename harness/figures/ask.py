"""How ``recommend`` uses a figure: as a limit, as the objective, or as a tie-breaker."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from harness.errors import UsageError
from harness.figures.formats import NumberStyle, SizeUnit
from harness.figures.table import GridPoint, Load, Table, VariantRow
from harness.stats.draws import Scale
from harness.stats.estimate import Estimate
from harness.stats.influence import Influence

Option = str | int | float | None
"""A limit as a user gives it."""
LAST = 1000


@dataclass(frozen=True)
class Use:
    """What a variant is chosen for: the point of the grid, and the batch and tokens that memory must hold.

    ``tokens`` counts prompt and answer together, in each row. ``level`` is the load at which a server's figures are
    read; None leaves it to the figure.
    """

    table: Table
    point: GridPoint | None
    batch: int
    tokens: int
    level: float | None = None

    @property
    def loads(self) -> tuple[Load, ...]:
        """Those of the level, or all of them, the lowest first."""
        return tuple(each for each in self.table.loads if self.level in (None, each.level))

    @property
    def measured(self) -> bool:
        """Whether a run had this batch size and this many tokens; if not, memory is extrapolated from smaller runs."""
        points = self.table.grid
        return any(
            point.batch_size >= self.batch and point.prompt_tokens + point.new_tokens >= self.tokens for point in points
        )


@dataclass(frozen=True)
class Reading:
    """A figure of one variant. ``basis`` says what it is based on if that is not obvious, or why it is missing.

    A count has an interval of zero width. ``includes`` names the part of it that is not the method's, in words that are
    always printed beside it. ``influence`` is that of the text's windows; ``scale`` is the scale on which the error is
    symmetric.
    """

    estimate: Estimate | None
    basis: str = ""
    influence: Influence | None = None
    scale: Scale = "linear"
    includes: str = ""

    @property
    def bounded(self) -> bool:
        """Whether there is an interval; a figure that was measured only once has none."""
        return self.estimate is not None and self.estimate.low is not None and self.estimate.high is not None


def counted(value: float, basis: str = "") -> Reading:
    """A count: its interval is itself."""
    return Reading(Estimate(value, value, value, 1, "exact"), basis)


def measured(
    estimate: Estimate | None,
    basis: str = "",
    lacking: str = "not measured",
    influence: Influence | None = None,
    scale: Scale = "linear",
) -> Reading:
    """A reading of an estimate; NaN counts as not measured."""
    if estimate is None or math.isnan(estimate.value):
        return Reading(None, lacking, scale=scale)
    return Reading(estimate, basis, influence, scale)


@dataclass(frozen=True)
class LimitOption:
    """A limit on a figure: ``name`` is the option, such as ``max-kl``, and ``parse`` reads its value.

    ``words`` is the limit in a sentence, with ``{}`` for the bound. ``rank`` orders the options.
    """

    name: str
    parse: Callable[[str, Option], float]
    metavar: str
    help: str
    words: str
    rank: int = LAST

    @property
    def keyword(self) -> str:
        """The keyword argument of ``harness.recommend``."""
        return self.name.replace("-", "_")


@dataclass(frozen=True)
class Objective:
    """A figure that can be optimized, by its ``name`` in ``--minimize`` or ``--maximize``.

    ``words`` says what the best one is, such as "the smallest"; ``equal`` introduces an equally good variant.
    """

    name: str
    words: str
    equal: str
    rank: int = LAST


@dataclass(frozen=True)
class Ties:
    """When two figures count as equal, and where the figure ranks as a tie-breaker between equal objectives.

    Differences up to ``tolerance``, a fraction of the figure, never count. Differences up to ``harmless`` (a fraction
    of the figure if ``relative``) do not count when the figure breaks a tie. Differences above ``large``, in the same
    terms, break it before any smaller difference of another figure does; None if none does. ``rank`` is its place among
    the tie-breakers, None if it is not one; ``words`` is its name in the answer then. ``stands_for`` names figures that
    say the same in another unit; they break no tie when this figure is the objective.
    """

    tolerance: float = 0.0
    harmless: float = 0.0
    large: float | None = None
    relative: bool = False
    rank: int | None = None
    words: str = ""
    stands_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """How ``recommend`` uses a figure. ``name`` is what an answer calls it.

    ``read`` computes the figure for a use if its value at the use's point of the grid is not enough. ``of_baseline``
    is the value of the reference by definition: of the baseline, unless that was itself measured on another engine.
    ``of_quality`` marks figures relative to the baseline's quality, which mean nothing if that is implausible.
    ``format`` overrides the column's format; a size is written in one of ``sizes``. ``explained``: the basis of a
    reading is printed beside it.
    """

    name: str
    limit: LimitOption | None = None
    objective: Objective | None = None
    ties: Ties = Ties()
    read: Callable[[VariantRow, Use], Reading] | None = None
    of_baseline: float | None = None
    of_quality: bool = False
    format: NumberStyle | None = None
    sizes: tuple[SizeUnit, ...] = ()
    explained: bool = False


def size(option: str, value: Option) -> float:
    """Bytes, from ``8GiB``. Like the other parsers, raises UsageError for an invalid value."""
    from pydantic import TypeAdapter, ValidationError

    from harness.recipe.fields import Bytes

    try:
        return TypeAdapter(Bytes).validate_python(value)
    except ValidationError:
        raise UsageError(
            f"--{option}: expected a size above zero such as 8GiB (2^30) or 8GB (10^9), not {value!r}"
        ) from None


def share(option: str, value: Option) -> float:
    """``1%`` or ``0.01``. Rejects a plain 1, which usually means one per cent."""
    text = str(value).strip()
    number = _number(text.removesuffix("%"))
    found = number / 100 if text.endswith("%") else number
    if not found > 0 or (found >= 1 and not text.endswith("%")):
        raise UsageError(f"--{option}: expected a share above zero such as 1% or 0.01, not {value!r}")
    return found


def share_of_one(option: str, value: Option) -> float:
    """A share of at most 100%."""
    found = share(option, value)
    if found > 1:
        raise UsageError(f"--{option}: expected a share of at most 100%, not {value!r}")
    return found


def delay(option: str, value: Option) -> float:
    """Seconds, from ``500ms`` or ``2s``."""
    from pydantic import TypeAdapter, ValidationError

    from harness.recipe.fields import Delay

    try:
        return TypeAdapter(Delay).validate_python(value)
    except ValidationError:
        raise UsageError(f"--{option}: expected a duration above zero such as 500ms or 2s, not {value!r}") from None


def positive(option: str, value: Option) -> float:
    number = _number(str(value).strip())
    if not number > 0:
        raise UsageError(f"--{option}: expected a number above zero, not {value!r}")
    return number


def _number(text: str) -> float:
    """NaN, which is not above zero, unless the text is a finite decimal number."""
    return (
        float(text)
        if re.fullmatch(r"\d+(\.\d*)?([eE][-+]?\d+)?|\.\d+", text) and math.isfinite(float(text))
        else math.nan
    )
