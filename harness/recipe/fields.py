"""The types of values in a recipe."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt
from pydantic_core import PydanticCustomError


def _seconds(value: Any) -> Any:
    """``90``, ``"90s"``, ``"10m"`` or ``"1.5h"`` in seconds."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)", value.strip())):
        return float(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise PydanticCustomError("duration", "expected a duration such as 90s, 10m or 2h")


def _bytes(value: Any) -> Any:
    """``8GiB`` (2³⁰), ``8GB`` (10⁹), or a whole number of bytes."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B", value.strip())):
        return int(float(match[1]) * (1024 if match[3] else 1000) ** (1 + "KMGT".index(match[2])))
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise PydanticCustomError("size", "expected a size such as 8GiB (2^30) or 8GB (10^9)")


def one_or_many(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value if isinstance(value, tuple) else (value,)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(value in values[:place] for place, value in enumerate(values)):
        raise PydanticCustomError("distinct", "expected no duplicates")
    return values


Seconds = Annotated[
    float, BeforeValidator(_seconds, json_schema_input_type=str | float), Field(gt=0, allow_inf_nan=False)
]
Bytes = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=str | int), Field(gt=0)]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
PositiveInts = Annotated[
    tuple[PositiveInt, ...],
    BeforeValidator(one_or_many, json_schema_input_type=PositiveInt | list[PositiveInt]),
    Field(min_length=1),
    AfterValidator(distinct),
]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Bos = Literal["auto", "always", "never"]
