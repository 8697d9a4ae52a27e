"""Frozen dataclasses to JSON and back. Decoding validates every field and rejects NaN and infinity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, TypeVar

from harness.core.column import LazyColumn
from harness.core.foreign import shortened
from harness.core.json_values import ABSENT_AT_DEFAULT, not_finite
from harness.errors import ResultsError

T = TypeVar("T")
MAX_FAULT = 400
"""Characters of what a field's validation reports."""


def encode(value: Any, indent: int | None = None) -> str:
    """A dataclass as JSON. Raises ValueError for NaN and infinities, which no record may contain."""
    return json.dumps(value, default=_fields, indent=indent, allow_nan=False, ensure_ascii=False)


def decode(kind: type[T], raw: object, name: str) -> T:
    """The dataclass that plain JSON data describes. Nothing is converted: ``"1"`` and ``true`` are no numbers.

    Raises ResultsError, with the field, if a number is NaN or infinite or the data do not fit.
    """
    return decode_text(kind, finite_json(raw, name), name)


def decode_text(kind: type[T], text: str, name: str) -> T:
    """The dataclass that JSON from ``finite_json`` describes. Raises ResultsError as ``decode`` does."""
    from pydantic import ValidationError

    try:
        decoded: T = _validator(kind).validate_json(text, strict=True)  # type: ignore[arg-type]  # hashable
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = shortened(".".join(str(part) for part in fault["loc"]))
        raise ResultsError(f"{name}: {place}: {shortened(fault['msg'].lower(), MAX_FAULT)}") from None
    return decoded


@cache
def _validator(kind: Any) -> Any:
    """Cached per type, because building a record's validator takes longer than using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def refuse_not_finite(raw: object, name: str) -> None:
    """Raises ResultsError, with the field, if a number in plain JSON data is NaN or infinite."""
    finite_json(raw, name)


def finite_json(raw: object, name: str) -> str:
    """Plain data as JSON. The encoder, which is in C, finds what is not finite; a walk in Python only says where."""
    try:
        return json.dumps(raw, allow_nan=False)
    except ValueError:
        place = not_finite(raw)
    raise ResultsError(f"{name}: {place} is not a finite number (NaN or infinity), so the record cannot be trusted")


def _fields(value: Any) -> dict[str, Any] | tuple[Any, ...]:
    """Converts one level of a type unknown to json; asdict would copy millions of values one by one.

    The default of a field without a plain one, such as a mapping, is an empty one.
    """
    if isinstance(value, LazyColumn):
        return tuple(value)
    if isinstance(value, frozenset):
        return tuple(sorted(value))
    if isinstance(value, Mapping):
        return dict(value)
    return {
        each.name: content
        for each in fields(value)
        for content in (getattr(value, each.name),)
        if (content if each.default is MISSING else content != each.default)
        or not ABSENT_AT_DEFAULT.items() <= each.metadata.items()
    }
