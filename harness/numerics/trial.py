"""Tries formats on one tensor: really rounds it to each format, with each of the format's usual scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from harness.numerics import scaling
from harness.numerics.affine import GroupSize
from harness.numerics.error import RoundingError, rounding_error
from harness.numerics.formats import FORMATS
from harness.numerics.kinds import BlockFormat, Codebook, FloatFormat, Format, IntFormat
from harness.numerics.observers import OBSERVERS
from harness.numerics.rounding import Array
from harness.numerics.scaling import Rounded

_SCOPES: dict[GroupSize, str] = {"tensor": "the tensor", "channel": "a row"}


@dataclass(frozen=True)
class Trial:
    """The result of one format. ``scaling`` describes its scales in words."""

    format: str
    scaling: str
    bits_per_weight: float
    error: RoundingError


def trials(
    values: Array, forms: Iterable[Format] = FORMATS, group_size: int = 64, observer: str = "min-max"
) -> Iterator[Trial]:
    """Every usual way to store a matrix (rows, columns) in each format; none for formats that only serve as scales.

    ``group_size`` and ``observer`` apply to the integer formats. The KL observer is used per tensor only, because a row
    or a group has too few values for its histogram.
    """
    for form in forms:
        for words, rounded in _ways(form, group_size, observer):
            result = rounded(values)
            bits = form.stored_bits + result.scale_bits / values.size
            yield Trial(form.name, words, bits, rounding_error(values, result.values))


_Ways = Iterator[tuple[str, Callable[[Array], Rounded]]]
"""Each scaling in words, and the function that rounds with it."""


def _ways(form: Format, group_size: int, observer: str) -> _Ways:
    if isinstance(form, BlockFormat):
        twice = form.tensor_scale is not None
        words = f"{form.scale.name} for {form.block} columns" + (", FP32 for the tensor" if twice else "")
        yield words, partial(scaling.twice_scaled if twice else scaling.microscaled, form=form)
    elif isinstance(form, FloatFormat):
        yield from _float_ways(form)
    elif isinstance(form, Codebook):
        yield f"{form.scale.name} for {form.block} values", partial(scaling.coded, codebook=form)
    elif isinstance(form, IntFormat):
        yield from _int_ways(form, group_size, observer)


def _float_ways(form: FloatFormat) -> _Ways:
    if form.bits > 8:
        yield "none", partial(scaling.cast, form=form)
        return
    for scope, words in _SCOPES.items():
        yield f"FP32 for {words}", partial(scaling.scaled, form=form, group_size=scope)


def _int_ways(form: IntFormat, group_size: int, observer: str) -> _Ways:
    observe = OBSERVERS[observer]
    parts = "FP16" if form.signed else f"FP16 and {form.name}"
    scopes: dict[GroupSize, str] = (
        {"tensor": _SCOPES["tensor"]} if observer == "kl" else {**_SCOPES, group_size: f"{group_size} columns"}
    )
    for scope, words in scopes.items():
        yield f"{parts} for {words}", partial(scaling.affine, form=form, group_size=scope, observer=observe)
