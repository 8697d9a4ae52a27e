"""A row of the table as text, exactly: what is derived from the evidence of a variant can be kept beside it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from harness.core.assembly import assembler
from harness.figures.evidence import Evidence
from harness.figures.table import VariantRow

NOT_DERIVED = ("label", "evidence")
"""Fields of a row that its evidence does not determine: a label depends on the other variants."""
CODE = ("analysis", "core", "figures", "stats", "storage", "tasks")
"""The rooms whose code reads records, and derives rows and findings from them."""
LIBRARIES = ("numpy", "scipy")

_decode = json.JSONDecoder().raw_decode
"""Without the search for spaces around a value, which takes longer than decoding a short one."""

Derived = tuple[VariantRow, tuple[str, ...]]
"""A row, and notes on what could not be compared."""


def written(derived: Derived) -> str:
    """One line: the notes and each figure as JSON, with tabs between, of which JSON has none.

    Numbers keep their type and every bit; NaN and infinity are written as JavaScript does.
    """
    made, notes = derived
    return "\t".join(map(as_text, (notes, *(getattr(made, name) for name, _ in _builders(VariantRow)))))


def read(text: str, evidence: Evidence, label: str) -> Derived:
    """The row of the same evidence, as it was derived. Its figures are decoded when they are used."""
    notes, *texts = text.split("\t")
    made = object.__new__(_KeptRow)
    vars(made).update(label=label, evidence=evidence, kept_texts=texts, _remembered={})
    return made, tuple(json.loads(notes))


class _KeptRow(VariantRow):
    """A row whose figures are texts, ``kept_texts``, until they are used: a command shows few of them."""

    __qualname__ = VariantRow.__qualname__  # printed as the row that it equals
    kept_texts: list[str]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VariantRow):
            return NotImplemented
        return all(getattr(self, each.name) == getattr(other, each.name) for each in fields(VariantRow) if each.compare)

    __hash__ = VariantRow.__hash__


class _KeptField:
    """A field of a row while it is a text. What is built from it hides this descriptor, which has no ``__set__``."""

    def __init__(self, place: int, name: str, build: Callable[[Any], Any]) -> None:
        self._place, self._name, self._build = place, name, build

    def __get__(self, row: _KeptRow, kind: type[_KeptRow]) -> Any:
        made = self._build(_decode(row.kept_texts[self._place])[0])
        vars(row)[self._name] = made
        return made


@cache
def code() -> str:
    """A digest of all that rows and findings depend on but the records: what other code derived is not used."""
    versions = (*(version(library) for library in LIBRARIES), sys.version)  # Python 3.12 adds floats up differently
    digest = hashlib.sha256(" ".join(versions).encode())
    root = Path(__file__).parents[1]
    for path in sorted(path for room in CODE for path in (root / room).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def as_text(value: Any) -> str:
    """A value of dataclasses and plain values as one line, for ``builder`` to read back."""
    return json.dumps(value, default=_plain, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """One level of a type unknown to JSON: a dataclass as the list of its fields, a number of numpy as Python's."""
    if is_dataclass(value):
        return [_pairs(getattr(value, each.name)) for each in fields(value) if each.init]
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be kept")


def _pairs(value: Any) -> Any:
    """A mapping as its items: a key may be a number, which is none in JSON."""
    return list(value.items()) if isinstance(value, Mapping) else value


@cache
def _builders(kind: type[Any]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """What makes each field of a dataclass from JSON."""
    hints = get_type_hints(kind)
    kept = (each.name for each in fields(kind) if each.init and not (kind is VariantRow and each.name in NOT_DERIVED))
    return tuple((name, builder(hints[name])) for name in kept)


@cache
def builder(kind: Any) -> Callable[[Any], Any]:
    """What makes a value of that type from JSON."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        inner = [each for each in arguments if each is not NoneType]
        if len(inner) > 1:
            return _same  # of plain values, such as a number or a text
        build = builder(inner[0])
        return build if build is _same else lambda value: None if value is None else build(value)
    if origin is tuple and arguments[-1] is ...:
        each = builder(arguments[0])
        return tuple if each is _same else lambda value: tuple(map(each, value))
    if origin is tuple:
        return _tuple_of([builder(argument) for argument in arguments])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dict
    if isinstance(kind, type) and is_dataclass(kind):
        return _constructor(kind)
    return _same


def _constructor(kind: Any) -> Callable[[list[Any]], Any]:
    """What makes a dataclass from the list of its fields, which it may change."""
    names, fill = [name for name, _ in _builders(kind)], _filler(build for _, build in _builders(kind))
    assemble = assembler(kind)
    return lambda values: assemble(zip(names, fill(values), strict=True))


def _tuple_of(builds: Sequence[Callable[[Any], Any]]) -> Callable[[list[Any]], tuple[Any, ...]]:
    """What makes a tuple from the list of its parts, which it may change. ValueError if they are more or fewer."""
    fill, count = _filler(builds), len(builds)

    def make(values: list[Any]) -> tuple[Any, ...]:
        if len(values) != count:
            raise ValueError(f"{len(values)} parts of a tuple of {count}")
        return tuple(fill(values))

    return make


def _filler(builds: Iterable[Callable[[Any], Any]]) -> Callable[[list[Any]], list[Any]]:
    """What makes each value of a list, in its place: most are plain values, which stay."""
    nested = [(place, build) for place, build in enumerate(builds) if build is not _same]

    def fill(values: list[Any]) -> list[Any]:
        for place, build in nested:
            values[place] = build(values[place])
        return values

    return fill


def _same(value: Any) -> Any:
    return value


for _place, (_name, _build) in enumerate(_builders(VariantRow)):
    setattr(_KeptRow, _name, _KeptField(_place, _name, _build))
