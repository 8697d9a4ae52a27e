"""Recipe errors in the user's terms: file, line, key, and what was expected there."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.core.foreign import MAX_QUOTED, quoted
from harness.errors import RecipeError, did_you_mean
from harness.recipe.yaml_file import Location, YamlFile

PATTERNS = {"revision": "a commit, 40 hexadecimal digits", "currency": "a code of three letters such as USD"}
PLAIN_WORD = "letters, digits, dots, dashes and underscores"
MAX_CHARACTERS = 1500
"""Of a message that lists the faults of a recipe. It names at least one, and how many are left."""


def all_of(file: YamlFile, error: ValidationError, root: type[BaseModel]) -> RecipeError:
    """All that is wrong with a recipe, one fault a line."""
    faults = causes(error.errors(include_url=False))
    lines: dict[str, None] = {}
    for number, fault in enumerate(faults):
        line = str(recipe_error(file, *explain(fault, root)))
        if lines and sum(map(len, lines)) + len(line) > MAX_CHARACTERS:
            return RecipeError("\n".join([*lines, f"and {len(faults) - number} more"]))
        lines[line] = None
    return RecipeError("\n".join(lines))


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
    key = "".join(
        f"[{part}]" if isinstance(part, int) else f".{_word(part)}" for part in location if part != "[key]"
    ).lstrip(".")
    place = f"{file.place_of(location)}: " if file else ""
    return RecipeError(f"{place}{key}: {message}" if key else f"{place}{message}")


def _word(key: str) -> str:
    """A key in a message: in quotes if it is long or not plain text."""
    return key if len(key) <= MAX_QUOTED and key.isprintable() else quoted(key)


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
        case "extends" | "gates" | "duration" | "size" | "method" | "text" | "distinct" | "grid":
            return location, fault["msg"]
        case "too_short":
            return location, "expected at least one entry"
        case "model_type":
            return location, f"expected a mapping, not {quoted(given)}"
    return location, expected(fault)


def expected(fault: ErrorDetails) -> str:
    """What pydantic expected, and the value given."""
    given = fault.get("input")
    if fault["type"] == "sentence":  # of a type's own validator
        return fault["msg"]
    if fault["type"] == "string_pattern_mismatch":
        return f"expected {PATTERNS.get(str(fault['loc'][-1]), PLAIN_WORD)}, not {quoted(given)}"
    if fault["type"] == "string_too_short":
        return "expected text, not ''"
    if fault["type"] in ("too_long", "string_too_long") and isinstance(given, Sized):
        what = "characters" if fault["type"] == "string_too_long" else "entries"
        return f"expected at most {fault['ctx']['max_length']} {what}, not {len(given)}"
    return f"{fault['msg'].replace('Input should be', 'expected')}, not {quoted(given)}"


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
