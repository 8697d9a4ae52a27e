"""Frozen dataclasses to JSON and back. What comes back is checked field by field."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, TypeVar

from harness.errors import ResultsError

T = TypeVar("T")


def encode(value: Any) -> str:
    """A dataclass as indented JSON. Raises ValueError for NaN and infinities: no record may hold them."""
    return json.dumps(asdict(value), indent=1, allow_nan=False, ensure_ascii=False)


def decode(kind: type[T], raw: object, name: str) -> T:
    """The dataclass that plain JSON data describes. Raises ResultsError, with the field, where it does not."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise ResultsError(f"{name}: {place}: {fault['msg'].lower()}") from None
