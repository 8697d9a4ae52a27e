"""What a user asks of a variant: limits that it must keep, and the figure that is to be best."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from harness.analysis.aspects import AspectName
from harness.errors import UsageError, refuse_unknown
from harness.figures.table import Table
from harness.recipe import Bytes

Option = str | int | float | None

PERPLEXITY_INCREASE = 0.01
ACCURACY_DROP = 0.01
"""What the question takes to be harmless that is asked where a user asks none."""


@dataclass(frozen=True)
class Limit:
    """A bound on one figure, in the figure's unit; ``option`` is how a user says it."""

    option: str
    aspect: AspectName
    bound: float


@dataclass(frozen=True)
class Wish:
    """Limits, and the aspect to be best. ``at`` names a point of the grid, as a report does, by some of its parts.

    ``context`` (prompt and answer) and ``batch`` are what memory is reckoned for; the point's own where None.
    ``allow_labelled`` admits what was calibrated on the evaluation text, and runs that are invalid.
    """

    limits: tuple[Limit, ...] = ()
    objective: AspectName = "bytes"
    at: str | None = None
    context: int | None = None
    batch: int | None = None
    allow_labelled: bool = False


def default_limits(table: Table) -> tuple[Limit, ...]:
    """The recipe's budget of memory, if any, and a perplexity at most 1% higher, or else accuracies 1 point lower."""
    found = []
    if table.budget_bytes is not None:
        found.append(Limit("max-memory", "memory", table.budget_bytes))
    if any(row.perplexity_change for row in table.rows):
        found.append(Limit("max-perplexity-increase", "perplexity", PERPLEXITY_INCREASE))
    elif any(score.change for row in table.rows for score in row.tasks):
        found.append(Limit("max-accuracy-drop", "accuracy_drop", ACCURACY_DROP))
    return tuple(found)


def parse_limits(options: Mapping[str, Option]) -> tuple[Limit, ...]:
    """From ``max_memory="8GiB"``, ``max_perplexity_increase="1%"`` and so on; what is None sets no limit.

    Raises UsageError for an unknown name, and for a value that is no positive number of the kind.
    """
    found = []
    for name, value in options.items():
        if name not in LIMITS:
            refuse_unknown("limit", name, LIMITS)
        if value is not None:
            aspect, parse = LIMITS[name]
            option = name.replace("_", "-")
            found.append(Limit(option, aspect, parse(option, value)))
    return tuple(found)


def parse_objective(minimize: str | None, maximize: str | None) -> AspectName:
    """The aspect to be best; stored bytes where none is named. Raises UsageError for two, and for an unknown one."""
    if minimize is not None and maximize is not None:
        raise UsageError("--minimize and --maximize: give one of them; the other wish can be a limit")
    if minimize is not None:
        return MINIMIZE[minimize] if minimize in MINIMIZE else refuse_unknown("--minimize", minimize, MINIMIZE)
    if maximize is not None:
        return MAXIMIZE[maximize] if maximize in MAXIMIZE else refuse_unknown("--maximize", maximize, MAXIMIZE)
    return "bytes"


def count(option: str, value: Option) -> int | None:
    """A number of tokens or of sequences: whole, at least one. Raises UsageError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"--{option}: expected a whole number above zero, not {value!r}")
    return value


def _size(option: str, value: Option) -> float:
    try:
        return TypeAdapter(Bytes).validate_python(value)
    except ValidationError:
        raise UsageError(
            f"--{option}: expected a size above zero such as 8GiB (2^30) or 8GB (10^9), not {value!r}"
        ) from None


def _share(option: str, value: Option) -> float:
    """``1%`` or ``0.01``. A plain 1 is refused: whoever writes it mostly means one per cent."""
    text = str(value).strip()
    number = _number(text.removesuffix("%"))
    share = number / 100 if text.endswith("%") else number
    if not share > 0 or (share >= 1 and not text.endswith("%")):
        raise UsageError(f"--{option}: expected a share above zero such as 1% or 0.01, not {value!r}")
    return share


def _agreement(option: str, value: Option) -> float:
    share = _share(option, value)
    if share > 1:
        raise UsageError(f"--{option}: expected a share of at most 100%, not {value!r}")
    return share


def _positive(option: str, value: Option) -> float:
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


LIMITS: Mapping[str, tuple[AspectName, Callable[[str, Option], float]]] = {
    "max_memory": ("memory", _size),
    "max_size": ("bytes", _size),
    "max_perplexity_increase": ("perplexity", _share),
    "max_kl": ("kl", _positive),
    "min_agreement": ("agreement", _agreement),
    "max_accuracy_drop": ("accuracy_drop", _share),
    "min_decode": ("decode", _positive),
    "min_prefill": ("prefill", _positive),
    "max_energy": ("energy", _positive),
}
MINIMIZE: Mapping[str, AspectName] = {
    "bytes": "bytes",
    "memory": "memory",
    "perplexity": "perplexity",
    "kl": "kl",
    "cost": "cost",
    "energy": "energy",
}
MAXIMIZE: Mapping[str, AspectName] = {"decode": "decode", "prefill": "prefill", "accuracy": "accuracy"}
