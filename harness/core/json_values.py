"""What JSON cannot express, NaN and infinities, and what it need not: fields at their defaults."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from harness.core.column import ArrayColumn

ABSENT_AT_DEFAULT = {"absent at default": True}
"""Metadata of a dataclass's field that JSON leaves out at its default, as records that lack the field do."""


def not_finite(value: Any) -> str | None:
    """The path of the first NaN or infinite number, such as ``outcome.measurements.0.values.3``, or None.

    What a ``LazyColumn`` reads was checked by its reader.
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else ""
    if isinstance(value, ArrayColumn):
        found = value.first_not_finite()
        return None if found is None else str(found)
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif is_dataclass(value):
        parts = ((each.name, getattr(value, each.name)) for each in fields(value))
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for name, part in parts:
        place = None if isinstance(part, str) else not_finite(part)  # a record has far more strings than numbers
        if place is not None:
            return f"{name}.{place}" if place else str(name)
    return None


def finite_text(value: Any) -> str:
    """Plain data as one line of JSON with null for every NaN and infinite number; most data have none."""
    try:
        return json.dumps(value, default=dict, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), ensure_ascii=False, allow_nan=False)


def finite(value: Any, digits: int | None = None) -> Any:
    """Plain data with None in place of every NaN and infinite number.

    ``digits`` rounds each float to that many significant digits, which drops what processors round differently.
    """
    if isinstance(value, Mapping):
        return {name: finite(inner, digits) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner, digits) for inner in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return value if digits is None else float(f"{value:.{digits}g}")
