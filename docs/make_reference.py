"""Writes docs/recipe-reference.md from the code that reads recipes: ``python docs/make_reference.py``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from harness import plugins as registry
from harness import recipe
from harness.core.site import MAIN

INTRO = """\
# Recipe reference

Made by `python docs/make_reference.py` from the code that reads recipes; edit that, not this file.

A recipe is one YAML mapping. An unknown key is an error. A relative path begins at the folder of the file that it is
written in. A mapping may stay empty: `memory: {}` measures memory; a key with nothing after it is an error.
`qharness plan RECIPE` checks a recipe and makes no run. `qharness schema` prints a JSON Schema for editors."""
EXTENDS = """\
## Extending a recipe

A recipe may build on another file and say only what differs:

```yaml
name: long-prompts
extends: quickstart.yaml
measure:
  throughput: {prompt_tokens: [512, 4096]} # batch sizes, new tokens and the other metrics stay as they are there
  divergence: null # takes an inherited key away
repetitions: 5
```

- Mappings are merged key by key, at every depth. A list, a number or a word takes the place of what the other file has
  there; lists are never joined.
- `null` takes an inherited key away. It is an error where nothing is inherited.
- The merge sees the files as they are written. Where the other file has a mapping and yours names another source, take
  the old key away too: `text: {hub: null, file: my.txt}`; or write a plain word: `text: my.txt`.
- `name` is never inherited: the results are those of the recipe that was run.
- The path is relative to the file that has it, and may begin with `~`. A file that is extended may extend another one.
  It need not be a whole recipe itself; only the merged recipe is checked. Circles are an error.
- A relative path begins at the folder of the file that it is written in, inherited or not.
  Errors name that file and line."""
METHODS = """\
## Methods

Lists under several parameters make every combination. Libraries, formats and what runs where: [methods](methods.md).
Plugins [add more](adding-a-method.md).
Beside its parameters, a method that quantizes in a run of its own takes `stack`: the [stack](methods.md#stacks) to
quantize in, in place of its usual one."""
STAGES = {
    "none": "does not quantize",
    "on_load": "quantizes while loading",
    "offline": "quantizes in a run of its own",
    "published": "was quantized before",
}
BOUNDS = {"gt": " above {}", "ge": ", {} or more", "pattern": " matching `{}`"}
WORDS: list[tuple[Any, str]] = [
    (recipe.Seconds, "duration: seconds, or `90s`, `10m`, `1.5h`"),
    (recipe.Bytes, "size: bytes, or `8GiB` (2³⁰ bytes each), `8GB` (10⁹ each); also with K, M and T"),
    (recipe.Model, "an id, or a mapping (see [models](#models))"),
    (recipe.MethodEntry, "a method's name, or one name with its parameters (see [methods](#methods))"),
    (recipe.Text, "a text's name, a file's path, or a mapping (see [its keys](#measureperplexitytext))"),
    *((str, "text"), (int, "whole number"), (float, "number"), (bool, "`true` or `false`"), (dict, "mapping")),
]
ONE_OR_MANY = get_args(recipe.PositiveInts)[1].func


def words(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """A field's type as a writer of recipes needs it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    for known, said in WORDS:
        if known in (annotation, origin):
            inner = [each for entry in metadata for each in getattr(entry, "metadata", [entry])]
            bounds = [(text, getattr(each, name, None)) for each in inner for name, text in BOUNDS.items()]
            return said + "".join(text.format(bound) for text, bound in bounds if bound is not None)
    if origin is Annotated:
        return words(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return ", ".join(words(part) for part in arguments if part is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        one = words(arguments[0])
        alone = any(getattr(each, "func", None) is ONE_OR_MANY for each in metadata)
        return f"{one}, or a list of them" if alone else f"list of: {one}"
    return "mapping (see its section)"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        value = getattr(value, "name", None) or value.model_dump(exclude_defaults=True)
    if value is None or field.is_required():
        return "absent" if value is None else "required"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _table(kind: type[BaseModel]) -> str:
    rows = [["key", "type", "default", "description"], ["---"] * 4]
    for name, field in kind.model_fields.items():
        text = field.description or "".join(map(_prose, list(_models(field.annotation))[:1])).partition(".")[0]
        rows.append([f"`{name}`", words(field.annotation, tuple(field.metadata)), _default(field), text])
    width = 4 if any(row[3] for row in rows[2:]) else 3
    return "\n".join(f"| {' | '.join(row[:width])} |" for row in rows) if len(rows) > 2 else "It has no keys."


def _prose(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").replace("``", "`")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _sections(kind: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every mapping that a recipe holds, under the keys that lead to it; methods have a chapter of their own."""
    yield path, kind
    for name, field in kind.model_fields.items():
        for inner in _models(field.annotation):
            if inner is not recipe.MethodEntry:
                yield from _sections(inner, f"{path}.{name}".lstrip("."))


def render() -> str:
    """The whole reference. Methods of plugins that happen to be installed are left out."""
    parts = [INTRO]
    for path, kind in _sections(recipe.Recipe):
        parts += [f"## {path or 'The recipe'}", _prose(kind), _table(kind)]
        parts += [] if path else [EXTENDS]
    parts += [METHODS]
    plugins = {entry.name for entry in entry_points(group=registry.METHOD_GROUP)}
    for method in (registry.method(name) for name in registry.method_names() if name not in plugins):
        also = "".join(f" Also called `{alias}`." for alias, of in registry.ALIASES.items() if of == method.name)
        needs = f" Needs the extra `{method.extra}`." if method.extra else ""
        if method.stack != MAIN:
            readers = " and ".join(registry.readers(method))
            measured = (
                f"; {readers} to be measured" if readers else f"; an engine that reads `{method.writes}` measures it"
            )
            needs = f" Needs [the stack](methods.md#stacks) `{method.stack}`{measured}."
        parts += [f"### {method.name}", f"`{method.name}`: {method.summary}. It {STAGES[method.stage]}.{also}{needs}"]
        parts += [_prose(method.params), *([_table(method.params)] if method.params.model_fields else [])]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("recipe-reference.md").write_text(render(), encoding="utf-8")
