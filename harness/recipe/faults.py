"""Recipe errors in the user's terms: file, line, key, and what was expected there."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from harness.errors import RecipeError, did_you_mean
from harness.recipe.yaml_file import Location, YamlFile


def causes(faults: list[ErrorDetails]) -> list[ErrorDetails]:
    """The faults without those that follow from others: a list is also "too short" if all its entries were rejected."""
    places = [fault["loc"] for fault in faults]
    return [
        fault
        for fault in faults
        if fault["type"] != "too_short" or sum(place[: len(fault["loc"])] == fault["loc"] for place in places) == 1
    ]


def recipe_error(file: YamlFile | None, location: Location, message: str) -> RecipeError:
    """An error that names the key and, if the recipe came from a file, the file and line of that key."""
    location = file.as_written(location) if file else location
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    place = f"{file.place_of(location)}: " if file else ""
    return RecipeError(f"{place}{key}: {message}" if key else f"{place}{message}")


def explain(fault: ErrorDetails, root: type[BaseModel]) -> tuple[Location, str]:
    """The location of a fault and what was expected there, in recipe terms."""
    location: Location = fault["loc"]
    given = fault.get("input")
    match fault["type"]:
        case "missing":
            return location, "this key is missing"
        case "extra_forbidden":
            owner = _owner(location[:-1], root)
            return location, "unknown key" + (did_you_mean(str(location[-1]), owner.model_fields) if owner else "")
        case "extends" | "gates" | "duration" | "size" | "method" | "text" | "distinct":
            return location, fault["msg"]
        case "string_pattern_mismatch":
            if location[-1] == "revision":
                return location, f"expected a commit, 40 hexadecimal digits, not {given!r}"
            return location, f"expected letters, digits, dots, dashes and underscores, not {given!r}"
        case "too_short":
            return location, "expected at least one entry"
        case "model_type":
            return location, f"expected a mapping, not {given!r}"
    return location, expected(fault)


def expected(fault: ErrorDetails) -> str:
    """What pydantic expected, and the value given."""
    return f"{fault['msg'].replace('Input should be', 'expected')}, not {fault.get('input')!r}"


def _owner(location: Location, root: type[BaseModel]) -> type[BaseModel] | None:
    """The model that owns the field at a location, so that the error can suggest the right key."""
    owner: Any = root
    for part in location:
        if isinstance(part, int):
            continue
        field = getattr(owner, "model_fields", {}).get(part)
        if field is None:
            return owner if isinstance(owner, type) and issubclass(owner, BaseModel) else None
        owner = next(iter(_models_in(field.annotation)), None)
    return owner if isinstance(owner, type) and issubclass(owner, BaseModel) else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
