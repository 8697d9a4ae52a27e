"""Values of frozen dataclasses as text, exactly: what was derived can be kept as one line, and read back the same.

Numbers keep their type and every bit; NaN and infinity are written as JavaScript does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from operator import attrgetter, methodcaller
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from harness.core.assembly import whole_assembler

MOST_SHARED = 1_000
"""Instances of a class that are remembered, if it has nothing but whole numbers and words."""


def as_text(value: Any) -> str:
    """A value of dataclasses and plain values as one line, for ``builder`` to read back."""
    return _ENCODER.encode(value)


def _plain(value: Any) -> Any:
    """One level of a type unknown to JSON: a dataclass as the list of its fields, a number of numpy as Python's."""
    return _lister(type(value))(value)  # type: ignore[arg-type]


_ENCODER = json.JSONEncoder(default=_plain, separators=(",", ":"), check_circular=False)


@cache
def _lister(kind: type) -> Callable[[Any], Any]:
    """What makes the values of a type plain: a whole answer has a hundred thousand of a few dataclasses."""
    if not is_dataclass(kind):
        if hasattr(kind, "item"):
            return methodcaller("item")
        raise TypeError(f"{kind.__name__} cannot be kept")
    hints, names = get_type_hints(kind), [each.name for each in fields(kind) if each.init]
    listed = attrgetter(*names) if len(names) > 1 else lambda value: [getattr(value, name) for name in names]
    mappings = [place for place, name in enumerate(names) if not _is_no_mapping(hints[name])]
    return (lambda value: _with_pairs(listed(value), mappings)) if mappings else listed


def _with_pairs(values: Iterable[Any], places: Sequence[int]) -> list[Any]:
    """The values, with a mapping at one of the places as its items: a key may be a number, which is none in JSON."""
    found = list(values)
    for place in places:
        if isinstance(found[place], Mapping):
            found[place] = list(found[place].items())
    return found


def _is_no_mapping(kind: Any) -> bool:
    """Whether a type says that no value of it is a mapping."""
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        return all(map(_is_no_mapping, get_args(kind)))
    if origin is Literal or is_dataclass(origin):
        return True
    return isinstance(origin, type) and issubclass(origin, (str, int, float, tuple, NoneType))


@cache
def builder(kind: Any) -> Callable[[Any], Any]:
    """What makes a value of that type from JSON."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if (inner := _known(kind)) is kind:
            return _same  # of plain values, such as a number or a text
        build = builder(inner)
        return build if build is _same else lambda value: None if value is None else build(value)
    if origin is tuple and arguments[-1] is ...:
        each = builder(arguments[0])
        return tuple if each is _same else lambda value: tuple(map(each, value))
    if origin is tuple:
        return _tuple_of(arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        value_of = builder(arguments[1])
        return dict if value_of is _same else lambda pairs: {key: value_of(value) for key, value in pairs}
    if isinstance(kind, type) and is_dataclass(kind):
        return _constructor(kind)
    return _same


def _constructor(kind: Any) -> Callable[[list[Any]], Any]:
    """What makes a dataclass from the list of its fields, which it may change."""
    hints, assemble = get_type_hints(kind), whole_assembler(kind)
    kinds = [hints[each.name] for each in fields(kind) if each.init]
    if {int, str}.issuperset(kinds):  # a point of the grid for example, of which thousands of figures have the same
        shared = lru_cache(MOST_SHARED, typed=True)(lambda *values: assemble(values))
        return lambda values: shared(*values)
    nested = _nested(kinds)
    return (lambda values: assemble(_fill(values, nested))) if nested else assemble


def _tuple_of(kinds: Sequence[Any]) -> Callable[[list[Any]], tuple[Any, ...]]:
    """What makes a tuple from the list of its parts, which it may change. ValueError if they are more or fewer."""
    nested, count = _nested(kinds), len(kinds)

    def make(values: list[Any]) -> tuple[Any, ...]:
        if len(values) != count:
            raise ValueError(f"{len(values)} parts of a tuple of {count}")
        return tuple(_fill(values, nested))

    return make


def _nested(kinds: Iterable[Any]) -> list[tuple[int, Callable[[Any], Any]]]:
    """What makes the values that are not plain ones, by their place; most are plain values, which stay."""
    builds = (builder(_known(kind)) for kind in kinds)
    return [(place, build) for place, build in enumerate(builds) if build is not _same]


def _fill(values: list[Any], nested: Sequence[tuple[int, Callable[[Any], Any]]]) -> list[Any]:
    for place, build in nested:
        if values[place] is not None:
            values[place] = build(values[place])
    return values


def _known(kind: Any) -> Any:
    """The type of a value that is not None."""
    inner = [each for each in get_args(kind) if each is not NoneType]
    return inner[0] if get_origin(kind) in (Union, UnionType) and len(inner) == 1 else kind


def _same(value: Any) -> Any:
    return value
