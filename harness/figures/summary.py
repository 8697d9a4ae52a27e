"""A row of the table as text, exactly: what is derived from the evidence of a variant can be kept beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache, lru_cache
from typing import Any, get_type_hints

from harness.core.exact_text import as_text, builder
from harness.figures.evidence import Evidence
from harness.figures.table import VariantRow

NOT_DERIVED = ("label", "evidence", "front_shares", "front_place")
"""Fields of a row that its evidence does not determine: a label and the front depend on the other variants."""
MOST_SHARED = 1_000
"""Texts of a field whose values are remembered."""
_decode = json.JSONDecoder().raw_decode
"""Without the search for spaces around a value, which takes longer than decoding a short one."""

Derived = tuple[VariantRow, tuple[str, ...]]
"""A row, and notes on what could not be compared."""


def written(derived: Derived) -> str:
    """One line: the notes and each figure as JSON, with tabs between, of which JSON has none.

    Numbers keep their type and every bit; NaN and infinity are written as JavaScript does.
    """
    made, notes = derived
    return "\t".join(map(as_text, (notes, *(getattr(made, name) for name, _ in _field_builders()))))


def read(text: str, evidence: Evidence, label: str) -> Derived:
    """The row of the same evidence, as it was derived. Its figures are decoded when they are used."""
    notes, *texts = text.split("\t")
    return _row(texts, label=label, evidence=evidence), tuple(json.loads(notes))


def read_changed(text: str, changed: Mapping[str, str], evidence: Evidence, label: str, front_place: int) -> VariantRow:
    """The row of the same evidence as it stands in a table, which ``changed`` these fields, by name."""
    texts = text.split("\t")[1:]
    for name, new in changed.items():
        texts[_places()[name]] = new
    return _row(texts, label=label, evidence=evidence, front_place=front_place)


def _row(texts: list[str], **others: Any) -> VariantRow:
    made = object.__new__(_KeptRow)
    vars(made).update(others, kept_texts=texts, _remembered={})
    return made


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
    """A field of a row while it is a text. What is built from it hides this descriptor, which has no ``__set__``.

    Most fields have few texts, such as null: rows with equal ones share what was built, which nobody changes.
    """

    def __init__(self, place: int, name: str, build: Callable[[Any], Any]) -> None:
        self._place, self._name = place, name
        self._built = lru_cache(MOST_SHARED)(lambda text: build(_decode(text)[0]))

    def __get__(self, row: _KeptRow, kind: type[_KeptRow]) -> Any:
        made = self._built(row.kept_texts[self._place])
        vars(row)[self._name] = made
        return made


@cache
def _field_builders() -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """What makes each kept field of a row from JSON."""
    hints = get_type_hints(VariantRow)
    kept = (each.name for each in fields(VariantRow) if each.init and each.name not in NOT_DERIVED)
    return tuple((name, builder(hints[name])) for name in kept)


@cache
def _places() -> Mapping[str, int]:
    """The place of each kept field among the texts of a row."""
    return {name: place for place, (name, _) in enumerate(_field_builders())}


for _place, (_name, _build) in enumerate(_field_builders()):
    setattr(_KeptRow, _name, _KeptField(_place, _name, _build))
