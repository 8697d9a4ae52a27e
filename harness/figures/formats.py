"""How numbers are written: significant digits, percent, and sizes whose unit is always named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

BLANK = "—"


@dataclass(frozen=True)
class SizeUnit:
    """A unit of memory: GB is 10⁹ bytes, GiB is 2³⁰."""

    name: str
    bytes: int


DECIMAL = (SizeUnit("GB", 10**9), SizeUnit("MB", 10**6), SizeUnit("kB", 10**3))
BINARY = (SizeUnit("GiB", 2**30), SizeUnit("MiB", 2**20), SizeUnit("KiB", 2**10))


def size_unit(sizes: Iterable[int], units: tuple[SizeUnit, ...]) -> SizeUnit:
    """The one unit for a whole column: the largest in which its largest entry is one or more."""
    largest = max(sizes, default=0)
    return next((unit for unit in units if largest >= unit.bytes), units[-1])


def significant(value: float, digits: int = 3) -> str:
    """``0.00415``, ``19.4``, ``5884``, ``1.89e-09``: never fewer digits than the integer part has."""
    if 1e-4 <= value < 10**digits - 1:  # as nearly all are: one step, and the same digits as below
        return f"{value:#.{digits}g}".removesuffix(".")
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "NaN"
    if value == 0:
        return "0"
    rounded = f"{value:.{digits - 1}e}"
    exponent = int(rounded.partition("e")[2])
    if not -5 <= exponent < 7:
        return rounded.replace("-", "−")
    return f"{value:.{max(digits - 1 - exponent, 0)}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """As ``significant``, with its sign; a typographic minus."""
    return ("+" if value > 0 else "") + significant(value, digits)


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 04 s``, ``1 h 02 min``."""
    if seconds < 60:
        return f"{significant(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


@dataclass(frozen=True)
class NumberStyle:
    """How readers see a number: ``write(number × factor)`` in a unit."""

    unit: str = ""
    write: Callable[[float], str] = significant
    factor: float = 1.0

    def text(self, value: float) -> str:
        return self.write(value * self.factor)


PERCENT = NumberStyle("%", factor=100)
SIGNED_PERCENT = NumberStyle("%", signed, 100)
WHOLE_NUMBER = NumberStyle(write=lambda value: f"{value:.0f}")


def in_unit(unit: SizeUnit) -> NumberStyle:
    """The style for bytes in that unit."""
    return NumberStyle(unit.name, factor=1 / unit.bytes)
