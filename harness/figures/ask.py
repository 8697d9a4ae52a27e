"""How a figure is asked for in ``recommend``: as a limit, as what is to be best, and as what decides among equals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from harness.errors import UsageError
from harness.figures.formats import NumberStyle, SizeUnit
from harness.figures.table import GridPoint, Table, VariantRow
from harness.recipe.fields import Bytes
from harness.stats.draws import Scale
from harness.stats.estimate import Estimate
from harness.stats.influence import Influence

Option = str | int | float | None
"""A limit as a user gives it."""
LAST = 1000


@dataclass(frozen=True)
class Use:
    """What a variant is chosen for: the point of the grid, and the batch and tokens that memory must hold.

    ``tokens`` are those of prompt and answer together, in each row.
    """

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
class Reading:
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
    """A reading of an estimate; what is no number was not measured."""
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
        """Of ``harness.recommend``."""
        return self.name.replace("-", "_")


@dataclass(frozen=True)
class Objective:
    """A figure that can be made best, by its ``name`` in ``--minimize`` or ``--maximize``.

    ``words`` says what the best one is, such as "the smallest"; ``equal`` what stands before a variant as good.
    """

    name: str
    words: str
    equal: str
    rank: int = LAST


@dataclass(frozen=True)
class Ties:
    """What makes two figures equal, and in which place it decides among variants whose objective is equal.

    Differences up to ``tolerance``, a part of the figure, never count. Differences up to ``harmless``, a part of the
    figure where ``relative``, do not count where the figure decides among equals. ``rank`` is its place among those
    that decide, None where it does not; ``words`` is how the answer calls it then. ``stands_for`` names figures that
    say the same in another unit, and therefore decide nothing where this one is the objective.
    """

    tolerance: float = 0.0
    harmless: float = 0.0
    relative: bool = False
    rank: int | None = None
    words: str = ""
    stands_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """How a figure is asked for. ``name`` is what an answer calls it.

    ``read`` takes the figure for a use where the figure itself, at the use's point of the grid, will not do.
    ``of_baseline`` is what the baseline has by definition. ``of_quality`` figures are relative to the baseline's
    quality, and mean nothing beside an implausible one. ``format`` is that of the figure where the column's will not
    do; a size is written in one of ``sizes``. ``explained``: the basis of a reading stands beside it.
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
    """Bytes, from ``8GiB``. Raises UsageError, as the other parsers do, for what is no such number."""
    try:
        return TypeAdapter(Bytes).validate_python(value)
    except ValidationError:
        raise UsageError(
            f"--{option}: expected a size above zero such as 8GiB (2^30) or 8GB (10^9), not {value!r}"
        ) from None


def share(option: str, value: Option) -> float:
    """``1%`` or ``0.01``. A plain 1 is refused: whoever writes it mostly means one per cent."""
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


def positive(option: str, value: Option) -> float:
    number = _number(str(value).strip())
    if not number > 0:
        raise UsageError(f"--{option}: expected a number above zero, not {value!r}")
    return number


def _number(text: str) -> float:
    """NaN where the text is no finite decimal number, which is not above zero."""
    return (
        float(text)
        if re.fullmatch(r"\d+(\.\d*)?([eE][-+]?\d+)?|\.\d+", text) and math.isfinite(float(text))
        else math.nan
    )
