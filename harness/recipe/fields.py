"""The types of values in a recipe."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from harness.core.plain import MAX_TEXT, fault_in, fault_in_text
from harness.core.workload import shown_level

MAX_NAME = 200
"""Characters of a name or label."""
MAX_RECIPE_NAME = 100
"""Characters of a recipe's name. It becomes a folder, and file systems take 255 bytes."""
MAX_PATH = 4096
"""Characters of a path or an id. Linux takes no longer path."""
MAX_ENTRIES = 100
"""Entries of a list that a person writes: models, texts, tasks, patterns."""
MAX_EXCLUDED = 1000
"""Entries of ``exclude``. A recipe that follows from runs may have one for each combination that none is of."""
MAX_VARIANTS = 1000
"""Combinations of parameters that the methods of a recipe, or its engines, expand to; and so their entries."""
MAX_SIZES = 100
"""Batch sizes, or prompt lengths, in one grid."""
MAX_BATCH = 2**16
MAX_TOKENS = 2**24
"""Tokens of a prompt, a window or a whole batch."""
MAX_ITERATIONS = 10_000
"""Iterations of one measurement. The record keeps each one's time."""
MAX_RATE = 10_000.0
"""Requests per second."""
MAX_SAMPLES = 2**20
"""Sequences to calibrate with."""
MAX_SEED = 2**32 - 1
"""The largest seed that every library accepts; numpy's is the smallest limit."""
MAX_SECONDS = 366 * 86400.0
MAX_THREADS = 4096
MAX_DEVICES = 64
MAX_SIZE = 2**60
"""Bytes of a memory limit or a budget: 1 EiB."""
_NUMBER = r"(\d{1,18}(?:\.\d{1,18})?)"


def _seconds(value: Any) -> Any:
    """``90``, ``"90s"``, ``"10m"`` or ``"1.5h"`` in seconds."""
    if isinstance(value, str) and (match := re.fullmatch(_NUMBER + r"\s*(s|m|h)", value.strip())):
        return float(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(min(value, 2 * MAX_SECONDS))  # a whole number may be too large for a float
    raise PydanticCustomError("duration", "expected a duration such as 90s, 10m or 2h")


def _delay(value: Any) -> Any:
    """``500ms``, or what a duration may be, in seconds."""
    if isinstance(value, str) and (match := re.fullmatch(_NUMBER + r"\s*ms", value.strip())):
        return float(match[1]) / 1000
    try:
        return _seconds(value)
    except PydanticCustomError:
        raise PydanticCustomError("duration", "expected a duration such as 500ms or 2s") from None


def _share(value: Any) -> Any:
    """``90%`` or 0.9."""
    if isinstance(value, str) and (match := re.fullmatch(_NUMBER + r"\s*%", value.strip())):
        return float(match[1]) / 100
    return value


def _bytes(value: Any) -> Any:
    """``8GiB`` (2³⁰), ``8GB`` (10⁹), or a whole number of bytes."""
    if isinstance(value, str) and (match := re.fullmatch(_NUMBER + r"\s*([KMGT])(i?)B", value.strip())):
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


def _told_apart(rates: tuple[float, ...]) -> tuple[float, ...]:
    names = [shown_level(rate) for rate in rates]
    alike = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if alike is not None:
        expected = "expected rates that differ in their first six digits; two are shown as {alike}"
        raise PydanticCustomError("distinct", expected, {"alike": alike})
    return rates


def _plain(value: Any) -> Any:
    if (fault := fault_in(value)) is not None:
        raise PydanticCustomError("plain", "{fault}", {"fault": fault})
    return value


def _one_value(value: Any) -> Any:
    if isinstance(value, list | tuple | dict):
        raise PydanticCustomError("plain", "expected a single value")
    return _plain(value)


def _text(value: str) -> str:
    if (fault := fault_in_text(value)) is not None:
        raise PydanticCustomError("plain", "{fault}", {"fault": fault})
    return value


def _one_line(value: str) -> str:
    if (fault := fault_in_text(value, frozenset())) is not None:
        raise PydanticCustomError("plain", "{fault}", {"fault": fault})
    return value


Seconds = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=str | float),
    Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False),
]
Delay = Annotated[
    float,
    BeforeValidator(_delay, json_schema_input_type=str | float),
    Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False),
]
Share = Annotated[
    float, BeforeValidator(_share, json_schema_input_type=str | float), Field(gt=0, le=1, allow_inf_nan=False)
]
Rates = Annotated[
    tuple[Annotated[float, Field(gt=0, le=MAX_RATE, allow_inf_nan=False)], ...],
    BeforeValidator(one_or_many, json_schema_input_type=float | list[float]),
    Field(min_length=1, max_length=MAX_SIZES),
    AfterValidator(distinct),
    AfterValidator(_told_apart),
]
Bytes = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=str | int), Field(gt=0, le=MAX_SIZE)]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
BatchSize = Annotated[int, Field(gt=0, le=MAX_BATCH)]
Tokens = Annotated[int, Field(gt=0, le=MAX_TOKENS)]
Iterations = Annotated[int, Field(gt=0, le=MAX_ITERATIONS)]
BatchSizes = Annotated[
    tuple[BatchSize, ...],
    BeforeValidator(one_or_many, json_schema_input_type=BatchSize | list[BatchSize]),
    Field(min_length=1, max_length=MAX_SIZES),
    AfterValidator(distinct),
]
Lengths = Annotated[
    tuple[Tokens, ...],
    BeforeValidator(one_or_many, json_schema_input_type=Tokens | list[Tokens]),
    Field(min_length=1, max_length=MAX_SIZES),
    AfterValidator(distinct),
]
Threads = Annotated[int, Field(gt=0, le=MAX_THREADS)]
Devices = Annotated[int, Field(gt=0, le=MAX_DEVICES)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Bos = Literal["auto", "always", "never"]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_one_line)]
"""Shown in tables and messages: one line without control characters."""
Located = Annotated[str, Field(min_length=1, max_length=MAX_PATH), AfterValidator(_one_line)]
"""A path or an id."""
Prose = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_text)]
"""May have several lines."""
Plain = Annotated[Any, AfterValidator(_plain)]
"""What YAML can hold, for keys whose types only a method, an engine or a plugin knows."""
OneValue = Annotated[Any, AfterValidator(_one_value)]
"""A text, a number or a truth value."""
