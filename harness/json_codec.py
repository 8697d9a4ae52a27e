"""Frozen dataclasses to JSON and back. What comes back is checked field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from harness.errors import ResultsError

T = TypeVar("T")


def encode(value: Any, indent: int | None = None) -> str:
    """A dataclass as JSON. Raises ValueError for NaN and infinities: no record may hold them."""
    return json.dumps(value, default=_fields, indent=indent, allow_nan=False, ensure_ascii=False)


def decode(kind: type[T], raw: object, name: str) -> T:
    """The dataclass that plain JSON data describes. Raises ResultsError, with the field, where it does not."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise ResultsError(f"{name}: {place}: {fault['msg'].lower()}") from None


def _fields(value: Any) -> dict[str, Any]:
    """One level of what json does not know; asdict would copy millions of values one by one."""
    return (
        dict(value) if isinstance(value, Mapping) else {each.name: getattr(value, each.name) for each in fields(value)}
    )
