"""Lazy columns: a sequence of known length whose values are read when they are first used.

A results folder has millions of values, and a command looks at few of them. A column compares equal to a tuple with the
same values, is hashed like it, and becomes one when it is pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar, overload

from pydantic import GetPydanticSchema

T = TypeVar("T")


class LazyColumn(Sequence[T]):
    """``read`` returns the values, as a sequence or as an array of one axis, and is called for every use.

    So it decides what is kept in memory, and for how long. It may raise ResultsError: then the values changed or
    vanished since their number was known. ``name`` identifies the values: columns with equal names have equal values;
    empty if nothing does.
    """

    __slots__ = ("_length", "_read", "name")

    def __init__(self, length: int, read: Callable[[], Any], name: str = "") -> None:
        self._length, self._read, self.name = length, read, name

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        found = self._read()[index]
        return _plain(found) if isinstance(index, slice) else getattr(found, "item", lambda: found)()

    def __iter__(self) -> Iterator[T]:
        return iter(_plain(self._read()))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """For ``numpy.asarray``, which imports numpy before it calls this. Arrays that are kept are read-only."""
        import numpy as np

        return np.array(self._read(), dtype=dtype, copy=copy)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LazyColumn | tuple):
            return NotImplemented
        if self is other or (self.name and isinstance(other, LazyColumn) and self.name == other.name):
            return True
        return len(self) == len(other) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


def _plain(values: Any) -> tuple[Any, ...]:
    """Python's own numbers and texts, from a sequence or an array."""
    return tuple(values.tolist()) if hasattr(values, "tolist") else tuple(values)


def _as_tuple(kind: Any, handler: Callable[[Any], Any]) -> Any:
    return handler(tuple.__class_getitem__((*kind.__args__, ...)))


Columnar = Annotated[Sequence[T], GetPydanticSchema(_as_tuple)]
"""A field that is decoded as a tuple of any length, and may hold a ``LazyColumn``."""
