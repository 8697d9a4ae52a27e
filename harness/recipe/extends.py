"""A recipe that extends another file, or a built-in recipe: ``extends: base.yaml``, ``extends: quickstart``.

Mappings are merged key by key; a list, a number or a string replaces the base's value. ``null`` removes an inherited
key. The extended file may itself extend another; ``name`` is never inherited.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.core.foreign import locate, quoted, shown
from harness.core.plain import MAX_VALUES
from harness.errors import RecipeError
from harness.recipe.built_in import built_in_recipes
from harness.recipe.faults import recipe_error
from harness.recipe.yaml_file import Location, YamlFile, read_yaml

EXTENDS = "extends"
NOT_INHERITED = ("name",)
"""The results folder is named after the recipe, so inheriting ``name`` would make two recipes share one by accident."""

MAX_FILES = 8
"""Files that one recipe is made of: itself, the one it extends, and so on."""


def read_extended(path: Path) -> YamlFile:
    """A recipe file merged onto the file it extends, without the key ``extends``.

    Raises RecipeError if a file cannot be read, if files extend each other in a circle, or for a ``null`` that removes
    nothing.
    """
    return _without_nulls(_read(path, ()))


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` merged onto ``base``. A None in ``over`` removes the key from ``base``; without such a key it stays."""
    merged = dict(base)
    for key, value in over.items():
        if value is None and key in base:
            del merged[key]
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = merge(base[key], value)
        else:
            merged[key] = value
    return merged


def _read(path: Path, above: tuple[Path, ...]) -> YamlFile:
    """``above`` are the files that led to this one, starting with the recipe that was run."""
    file = read_yaml(path)
    if EXTENDS not in file.data:
        return file
    base = _base(file)
    chain = (*above, path)
    if base.resolve() in [each.resolve() for each in chain]:
        circle = " extends ".join(map(shown, (*chain, base)))
        raise recipe_error(file, (EXTENDS,), f"the files extend each other in a circle: {circle}")
    if len(chain) >= MAX_FILES:
        raise recipe_error(file, (EXTENDS,), f"a recipe is made of at most {MAX_FILES} files; merge some of them")
    whole = _laid(_read(base, chain), file)
    if len(whole.places) > MAX_VALUES:
        raise recipe_error(file, (EXTENDS,), f"together the files hold more than {MAX_VALUES} values; write fewer")
    return whole


def _base(file: YamlFile) -> Path:
    """The file that a recipe extends, as a path suited to messages."""
    written = file.data[EXTENDS]
    if not isinstance(written, str) or not written:
        raise recipe_error(file, (EXTENDS,), f"expected the path of a recipe file, not {quoted(written)}")
    try:
        path = locate(written, file.path.resolve().parent, RecipeError)
    except RecipeError as error:
        raise recipe_error(file, (EXTENDS,), str(error)) from None
    if not path.is_file():
        path = built_in_recipes().get(written, path)
    if not path.is_file():
        raise recipe_error(file, (EXTENDS,), f"expected the path of a recipe file; there is no file {shown(path)}")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _laid(base: YamlFile, over: YamlFile) -> YamlFile:
    inherited = {key: value for key, value in base.data.items() if key not in NOT_INHERITED}
    own = {key: value for key, value in over.data.items() if key != EXTENDS}
    replaced = {*_replaced(inherited, own, ()), *((key,) for key in NOT_INHERITED)}
    kept = {
        location: place
        for location, place in base.places.items()
        if not any(location[:end] in replaced for end in range(1, len(location) + 1))
    }
    return YamlFile(over.path, merge(inherited, own), kept | over.places)


def _replaced(base: dict[str, Any], over: dict[str, Any], at: Location) -> set[Location]:
    """The locations whose values in ``base`` do not survive the merge."""
    found: set[Location] = set()
    for key in base.keys() & over.keys():
        if isinstance(base[key], dict) and isinstance(over[key], dict):
            found |= _replaced(base[key], over[key], (*at, key))
        else:
            found.add((*at, key))
    return found


def _without_nulls(file: YamlFile) -> YamlFile:
    def check(value: Any, at: Location) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if inner is None:
                    raise RecipeError(
                        f"{file.place_of((*at, key))}: null removes a key inherited through 'extends', but "
                        f"{quoted(key)} is not inherited; give it a value or leave it out"
                    )
                check(inner, (*at, key))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                check(inner, (*at, index))

    check(file.data, ())
    return file


def file_schema(whole: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a recipe file, from that of a whole recipe.

    A file that extends another may omit any key except ``name``, in nested mappings too, and may remove keys with
    ``null``. The entries of its lists are complete, because lists are never merged.
    """
    definitions = whole["$defs"]
    parts = {f"Part{name}": _part(definition) for name, definition in definitions.items()}
    top = {key: value for key, value in whole.items() if key != "$defs"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of qharness",
        "$defs": {**definitions, **parts, "Recipe": top, "PartRecipe": {**_part(top), "required": list(NOT_INHERITED)}},
        "if": {"type": "object", "required": [EXTENDS]},
        "then": {"$ref": "#/$defs/PartRecipe"},
        "else": {"$ref": "#/$defs/Recipe"},
    }


def _part(node: dict[str, Any]) -> dict[str, Any]:
    """The schema of a mapping whose other keys may be inherited."""
    part = {key: value for key, value in node.items() if key != "required"}
    if "$ref" in part:
        return {**part, "$ref": part["$ref"].replace("#/$defs/", "#/$defs/Part")}
    if "anyOf" in part:
        part["anyOf"] = list(map(_part, part["anyOf"]))
    if "properties" in part:
        part["properties"] = {
            name: inner if name in (EXTENDS, *NOT_INHERITED) else _removable(inner)
            for name, inner in part["properties"].items()
        }
    if isinstance(part.get("additionalProperties"), dict):
        part["additionalProperties"] = _removable(part["additionalProperties"])
    return part


def _removable(node: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [_part(node), {"type": "null"}]}
