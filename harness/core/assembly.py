"""Makes frozen dataclasses from values that were checked before, of which commands over many records make many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def assembler(kind: type[T]) -> Callable[[Mapping[str, Any] | Iterable[tuple[str, Any]]], T]:
    """Makes an instance from the values of its fields by name, in half the time of a frozen class's own ``__init__``.

    Fields without a value get their plain defaults. A class that checks or derives something when it is made is made by
    itself, and so is one of which another field is missing.
    """
    known = fields(kind)  # type: ignore[arg-type]
    if not _is_plain(kind):
        return lambda values: kind(**dict(values))

    defaults = {each.name: each.default for each in known if each.default is not MISSING}

    def assemble(values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> T:
        made = object.__new__(kind)
        own = vars(made)
        own.update(defaults)
        own.update(values)
        return made if len(own) == len(known) else kind(**own)

    return assemble


@cache
def whole_assembler(kind: type[T]) -> Callable[[Iterable[Any]], T]:
    """Makes an instance from the values of all fields that a constructor takes, in their order: faster still.

    ValueError if they are more or fewer.
    """
    if not _is_plain(kind):
        return lambda values: kind(*values)

    names, new = tuple(each.name for each in fields(kind)), object.__new__  # type: ignore[arg-type]

    def assemble(values: Iterable[Any]) -> T:
        made = new(kind)
        made.__dict__.update(zip(names, values, strict=True))
        return made

    return assemble


def _is_plain(kind: Any) -> bool:
    """Whether an instance is nothing but the values of its fields."""
    return not (hasattr(kind, "__post_init__") or hasattr(kind, "__slots__")) and all(
        each.init for each in fields(kind)
    )
