"""Changes parts of a value of frozen dataclasses, wherever in it they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from harness.core.column import LazyColumn

T = TypeVar("T")


def with_parts(value: T, change: Callable[[Any], Any]) -> T:
    """The value with every part for which ``change`` returns a part of the same type, and not None.

    Looks into the fields of dataclasses, and into tuples and columns, but not into a changed part. What stays equal
    stays shared.
    """
    changed = change(value)
    if changed is not None:
        return changed  # type: ignore[no-any-return]  # of the same type
    if isinstance(value, tuple | LazyColumn):
        parts = tuple(with_parts(each, change) for each in value)
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts  # type: ignore[return-value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    own = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
    made = {name: with_parts(each, change) for name, each in own.items()}
    differing = {name: each for name, each in made.items() if each is not own[name]}
    return replace(value, **differing) if differing else value
