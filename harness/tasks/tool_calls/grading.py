"""Scores an answer against the one right call, and a call's arguments against their schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.tasks.tool_calls.parsing import Call, calls
from harness.tasks.tool_calls.tools import BY_NAME, Schema

ASPECTS = ("valid_json", "valid_schema", "right_tool", "exact_match")
"""In order: each asks for more than the one before, except that a right tool may have invalid arguments."""
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def grade(answer: str, offered: Sequence[str], right: Call) -> dict[str, float]:
    """The aspects of an answer, 1 or 0 each.

    ``valid_json``: it has one call at least, in a known format. ``valid_schema``: the first call is of an offered tool
    and its arguments are valid. ``right_tool``: the first call is of the right tool. ``exact_match``: it is the only
    call, valid, and its arguments are the right ones.
    """
    found = calls(answer)
    first = found[0] if found else None
    valid = first is not None and first.name in offered and is_valid(first.arguments, BY_NAME[first.name].parameters)
    tool = first is not None and first.name == right.name
    same = valid and tool and len(found) == 1 and first is not None and alike(first, right)
    return {name: float(each) for name, each in zip(ASPECTS, (first is not None, valid, tool, same), strict=True)}


def alike(one: Call, other: Call) -> bool:
    """Whether two calls mean the same: a parameter that is left out has its default, and 5 is 5.0.

    The order of keys, the case of texts and the spaces around and within them do not count.
    """
    defaults = {
        name: schema["default"] for name, schema in BY_NAME[other.name].properties.items() if "default" in schema
    }
    return bool(_normal({**defaults, **one.arguments}) == _normal({**defaults, **other.arguments}))


def _normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _normal(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_normal(each) for each in value]
    if isinstance(value, str):
        return " ".join(value.split()).casefold().rstrip(".")
    return value


def is_valid(value: Any, schema: Schema) -> bool:
    """Whether a value satisfies a JSON Schema, of the keywords that this project's tools use."""
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return False
    if kind == "integer" and isinstance(value, float) and not value.is_integer():
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(is_valid(each, schema["items"]) for each in value)
    if isinstance(value, dict):
        properties = schema["properties"]
        return (
            all(name in value for name in schema.get("required", ()))
            and all(name in properties for name in value)
            and all(is_valid(each, properties[name]) for name, each in value.items())
        )
    return True
