"""The kinds of number formats: what their bits mean, and the limits that follow from them.

Pure Python: no array library is imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Format:
    """What every format provides. ``bits`` is the size of one code; ``summary`` is one line for people."""

    name: str
    summary: str
    bits: int

    @property
    def stored_bits(self) -> int:
        """Bits that one code occupies in storage."""
        return self.bits

    @property
    def bits_per_value(self) -> float:
        """Stored bits per value, including its share of the block's scale."""
        return float(self.stored_bits)

    @property
    def fields(self) -> str | None:
        """Bits of sign, exponent and mantissa, as ``1·4·3``; None if a code has no such fields."""
        return None

    @property
    def bias(self) -> int | None:
        """What is subtracted from the exponent field; None if there is no such field."""
        return None

    @property
    def lowest(self) -> float:
        """The most negative finite value."""
        return -self.largest

    @property
    def largest(self) -> float:
        """The largest finite value."""
        raise NotImplementedError

    @property
    def smallest_normal(self) -> float | None:
        """The smallest positive value with full precision; 1 for integers."""
        return None

    @property
    def smallest_subnormal(self) -> float | None:
        """The smallest positive value; None if no value is subnormal."""
        return None

    @property
    def digits(self) -> float | None:
        """Decimal precision, log10(2^p) for a significand of p bits; None if it is not a single number."""
        return None

    @property
    def infinities(self) -> bool:
        return False

    @property
    def nans(self) -> int:
        """How many codes are NaN."""
        return 0

    def decode(self, code: int) -> float:
        """The value of a code from 0 to 2^bits − 1."""
        raise NotImplementedError

    @property
    def values(self) -> tuple[float, ...] | None:
        """The value of each code, in the order of the codes; None above 8 bits."""
        return tuple(self.decode(code) for code in range(2**self.bits)) if self.bits <= 8 else None


@dataclass(frozen=True, kw_only=True)
class FloatFormat(Format):
    """Sign, exponent and mantissa, with subnormals; the bias is 2^(exponent_bits − 1) − 1.

    ``specials``: ``ieee`` reserves the highest exponent for infinities and NaN, ``nan`` reserves only the
    highest code of each sign for NaN, ``none`` reserves nothing. ``padding`` bits are stored but unused.
    """

    exponent_bits: int
    mantissa_bits: int
    specials: Literal["ieee", "nan", "none"] = "ieee"
    padding: int = 0

    @property
    def stored_bits(self) -> int:
        return self.bits + self.padding

    @property
    def fields(self) -> str:
        return f"1·{self.exponent_bits}·{self.mantissa_bits}"

    @property
    def bias(self) -> int:
        return (1 << self.exponent_bits - 1) - 1

    @property
    def largest_exponent(self) -> int:
        """The exponent of the largest finite value: emax in the OCP specification."""
        return (1 << self.exponent_bits) - 1 - self.bias - int(self.specials == "ieee")

    @property
    def largest(self) -> float:
        significand = (2 << self.mantissa_bits) - 1 - (self.specials == "nan")
        return math.ldexp(significand, self.largest_exponent - self.mantissa_bits)

    @property
    def smallest_normal(self) -> float:
        return math.ldexp(1, 1 - self.bias)

    @property
    def smallest_subnormal(self) -> float:
        return math.ldexp(1, 1 - self.bias - self.mantissa_bits)

    @property
    def digits(self) -> float:
        return (self.mantissa_bits + 1) * math.log10(2)

    @property
    def infinities(self) -> bool:
        return self.specials == "ieee"

    @property
    def nans(self) -> int:
        return {"ieee": (2 << self.mantissa_bits) - 2, "nan": 2, "none": 0}[self.specials]

    def decode(self, code: int) -> float:
        mantissa = code % 2**self.mantissa_bits
        exponent = (code >> self.mantissa_bits) % 2**self.exponent_bits
        sign = -1.0 if code >> (self.mantissa_bits + self.exponent_bits) else 1.0
        full, highest = mantissa == 2**self.mantissa_bits - 1, exponent == 2**self.exponent_bits - 1
        if self.specials == "ieee" and highest:
            return math.nan if mantissa else sign * math.inf
        if self.specials == "nan" and highest and full:
            return math.nan
        significand = mantissa + (2**self.mantissa_bits if exponent else 0)
        return sign * math.ldexp(significand, max(exponent, 1) - self.bias - self.mantissa_bits)


@dataclass(frozen=True, kw_only=True)
class ExponentFormat(Format):
    """Powers of two only: no sign, no zero; the highest code is NaN. Used as a scale."""

    @property
    def fields(self) -> str:
        return f"0·{self.bits}·0"

    @property
    def bias(self) -> int:
        return (1 << self.bits - 1) - 1

    @property
    def lowest(self) -> float:
        return self.smallest_normal

    @property
    def largest(self) -> float:
        return self.decode(2**self.bits - 2)

    @property
    def smallest_normal(self) -> float:
        return self.decode(0)

    @property
    def digits(self) -> float:
        return math.log10(2)

    @property
    def nans(self) -> int:
        return 1

    def decode(self, code: int) -> float:
        return math.nan if code == 2**self.bits - 1 else math.ldexp(1, code - self.bias)


@dataclass(frozen=True, kw_only=True)
class IntFormat(Format):
    """Whole numbers; two's complement if signed."""

    signed: bool

    @property
    def lowest(self) -> float:
        return -float(1 << self.bits - 1) if self.signed else 0.0

    @property
    def largest(self) -> float:
        return self.lowest + (1 << self.bits) - 1

    @property
    def smallest_normal(self) -> float:
        return 1.0

    @property
    def digits(self) -> float:
        return math.log10(self.largest + 1)

    def decode(self, code: int) -> float:
        return float(code - 2**self.bits if self.signed and code >= 2 ** (self.bits - 1) else code)


@dataclass(frozen=True, kw_only=True)
class Codebook(Format):
    """A list of levels, one per code, times one scale per ``block`` values."""

    levels: tuple[float, ...]
    block: int
    scale: FloatFormat

    @property
    def bits_per_value(self) -> float:
        return self.bits + self.scale.bits / self.block

    @property
    def lowest(self) -> float:
        return min(self.levels)

    @property
    def largest(self) -> float:
        return max(self.levels)

    @property
    def smallest_normal(self) -> float:
        return min(level for level in self.levels if level > 0)

    def decode(self, code: int) -> float:
        return self.levels[code]


@dataclass(frozen=True, kw_only=True)
class BlockFormat(FloatFormat):
    """A small float format in which each block of ``block`` values shares one scale.

    Limits, digits and values describe the elements, before any scale. ``tensor_scale`` is a second scale for the
    whole tensor; its bits are negligible.
    """

    block: int
    scale: FloatFormat | ExponentFormat
    tensor_scale: FloatFormat | None = None

    @property
    def bits_per_value(self) -> float:
        return self.bits + self.scale.bits / self.block
