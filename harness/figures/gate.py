"""Gates: the threshold by which a figure is judged when two sets of records are compared, and how it is written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.core.foreign import quoted
from harness.core.plain import fault_in_scalar
from harness.errors import did_you_mean

if TYPE_CHECKING:
    from harness.figures.figure import Figure

Written = Literal["relative", "points", "nat", "unit"]
"""Kinds of thresholds: a fraction of BASE's figure, a difference of shares (1% is 0.01), nats, or the figure's own
unit."""
LAST = 1000


@dataclass(frozen=True)
class Gate:
    """``default`` is the threshold if the user gives none: the largest change that does not matter.

    ``says`` names the figure in the documentation. ``usual`` gates are in force if a user names none. ``rank``
    orders findings and series; figures without one follow in the order of their declarations.
    """

    written: Written
    default: float
    says: str
    usual: bool = True
    rank: int = LAST

    @property
    def share(self) -> bool:
        """Whether a threshold is a share, which may be written in per cent."""
        return self.written in ("relative", "points")


def in_order(figures: Mapping[str, Figure[Any]]) -> dict[str, Figure[Any]]:
    """The figures that have a gate, in order, by name."""
    gated = (each for each in figures.values() if each.gate)
    return {each.name: each for each in sorted(gated, key=lambda each: each.gate.rank if each.gate else LAST)}


def threshold(gates: Mapping[str, Figure[Any]], name: str, written: object) -> float:
    """Parses a threshold: ``0.5%`` or ``0.005``; for a divergence, a number of nats.

    Raises ValueError for an unknown gate and for a value that is not a threshold of this one.
    """
    from harness.figures.statistic import Count  # brings all figures, which a plan without gates does not need

    figure = gates.get(name)
    if figure is None or figure.gate is None:
        raise ValueError(f"unknown gate {quoted(name)}{did_you_mean(name, gates)}")
    gate = figure.gate
    value = _number(written)
    percent = isinstance(written, str) and written.strip().endswith("%")
    if value is None or (percent and not gate.share):
        raise ValueError(f"{name}: expected {_example(gate)}, not {quoted(written)}")
    if not (math.isfinite(value) and value >= 0) or (gate.share and value >= 1):
        raise ValueError(f"{name}: a threshold is at least 0" + (" and less than 100%" if gate.share else ""))
    if value == 0 and not isinstance(figure.statistic, Count):
        raise ValueError(f"{name}: measured with noise, which no threshold of 0 allows for; say what does not matter")
    return value


def shown(figure: Figure[Any], value: float) -> str:
    """A threshold as a user writes it."""
    assert figure.gate is not None
    if figure.gate.share:
        return f"{value * 100:g}%"
    if figure.gate.written == "nat":
        return f"{value:g} nat"
    return f"{value:g} {figure.statistic.unit}".strip() if figure.statistic else f"{value:g}"


def _example(gate: Gate) -> str:
    if gate.share:
        return "a share such as 0.5% or 0.005"
    return "a number of nats such as 0.001" if gate.written == "nat" else "a number such as 0.1"


def _number(written: object) -> float | None:
    if isinstance(written, int) and fault_in_scalar(written) is not None:
        return None
    if isinstance(written, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE]-?\d+)?)\s*(%?)\s*", written)
        return float(match[1]) / (100 if match[2] else 1) if match else None
    return float(written) if isinstance(written, int | float) and not isinstance(written, bool) else None
