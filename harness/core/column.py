"""Columns: many values of a measurement, without a Python object for each.

A column compares equal to a tuple with the same values, and is hashed like it. A ``LazyColumn`` is read when it is
used, because a results folder has millions of values and a command looks at few of them. An ``ArrayColumn`` is in
memory: metrics make it, and it travels with its run to where it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

T = TypeVar("T")
BLOCK_VALUES = 4096
"""How many values of a column are Python objects at the same time while one iterates over it."""


class LazyColumn(Sequence[T]):
    """``read`` returns the values, as a sequence or as an array of one axis, and is called for every use.

    So it decides what is kept in memory, and for how long. It may raise ResultsError: then the values changed or
    vanished since their number was known. ``name`` identifies the values: columns with equal names have equal values;
    empty if nothing does. Pickling makes a tuple of it.
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
        values = self._read()
        for begin in range(0, self._length, BLOCK_VALUES):
            yield from _plain(values[begin : begin + BLOCK_VALUES])

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


class ArrayColumn(LazyColumn[T]):
    """A column in memory: an array of one axis, of float64 or of texts, which nobody may change. It is pickled as such.

    Texts are Python objects (``texts``), of which several measurements may share one column.
    """

    __slots__ = ("_array",)

    def __init__(self, array: Any) -> None:
        held = array.view()
        held.flags.writeable = False
        super().__init__(len(held), lambda: held)
        self._array = held

    def first_not_finite(self) -> int | None:
        """The place of the first NaN or infinity; None if there is none, as among texts."""
        import numpy as np

        if self._array.dtype.kind != "f":
            return None
        finite = np.isfinite(self._array)
        return None if finite.all() else int(finite.argmin())

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayColumn, (self._array,)


def numbers(values: Iterable[float], count: int) -> ArrayColumn[float]:
    """A column of so many numbers."""
    import numpy as np

    return ArrayColumn(np.fromiter(values, np.float64, count))


def texts(values: Iterable[str], count: int) -> ArrayColumn[str]:
    """A column of so many texts."""
    import numpy as np

    return ArrayColumn(np.fromiter(values, np.dtype(object), count))


def _plain(values: Any) -> tuple[Any, ...]:
    """Python's own numbers and texts, from a sequence or an array."""
    return tuple(values.tolist()) if hasattr(values, "tolist") else tuple(values)
