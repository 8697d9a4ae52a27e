"""What reading a Parquet file would take, from its footer and the header of every page, before a library reads it.

A page says how large it becomes when it is decompressed, and a reader allocates that much: a file of a few KB can ask
for GB. The footer says the same of all pages of a column, and may lie. pyarrow compares neither with a bound, and an
unknown codec ends its process. So both are read here first. The layout is https://github.com/apache/parquet-format
(parquet.thrift numbers the fields), in Thrift's compact protocol.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_PAGE_BYTES = 64 * 2**20
"""Of a decompressed page; the writer ends a page of values at 1 MiB, but one page holds all different texts."""
MAX_UNCOMPRESSED_BYTES = 192 * 2**20
"""Of all pages of a file."""
SMALL_ROWS = 200_000
"""A larger file must have a byte for each further row: evidence has five, and a bomb far less than one."""
MAX_ROW_GROUPS = 64
MAX_PAGES = 10_000
MAX_FOOTER_BYTES = 2**20
MAX_PAGE_HEADER_BYTES = 2**16
MAX_NESTING = 8
UNCOMPRESSED, SNAPPY = 0, 1
"""Other codecs compress too well: a page of some KB could hold GB."""
INT32, DOUBLE, BYTE_ARRAY = 1, 5, 6
_ENCODINGS = frozenset({0, 2, 3, 8})
"""Plain, both names of dictionary encoding, and run lengths."""
_MAGIC = b"PAR1"
_TOO_LONG = "a header is longer than its place"

Thrift = int | bytes | list["Thrift"] | dict[int, "Thrift"]
"""A value; a structure maps the numbers of its fields to their values."""


class OutOfBoundsError(Exception):
    """The file breaks the format or a bound; the message says how."""


def check_bounds(content: bytes, types: Sequence[int], max_rows: int) -> None:
    """Raises OutOfBoundsError if reading the file could take too much; ``types`` are the columns' physical types."""
    (length,) = struct.unpack("<I", content[-8:-4]) if len(content) >= 12 else (0,)
    if content[:4] != _MAGIC or content[-4:] != _MAGIC or not 0 < length <= min(MAX_FOOTER_BYTES, len(content) - 12):
        raise OutOfBoundsError("it is no whole Parquet file")
    end = len(content) - 8
    footer = _Compact(content, end - length, end).structure()
    rows, groups = _number(footer, 3), _list(footer, 4)
    if not 0 <= rows <= min(max_rows, SMALL_ROWS + len(content)) or len(groups) > MAX_ROW_GROUPS:
        raise OutOfBoundsError(f"{rows} rows in {len(groups)} groups")
    budget = _Budget(rows)
    for group in map(_structure, groups):
        columns = _list(group, 1)
        if len(columns) != len(types):
            raise OutOfBoundsError(f"a group has {len(columns)} columns instead of {len(types)}")
        for column, kind in zip(map(_structure, columns), types, strict=True):
            _check_column(content, column, kind, _number(group, 3), budget)
    if sum(_number(_structure(group), 3) for group in groups) != rows:
        raise OutOfBoundsError("its groups do not have the rows that the file has")


@dataclass
class _Budget:
    """What all pages so far take, in a file of so many rows."""

    rows: int
    uncompressed_bytes: int = 0
    pages: int = 0

    def add(self, page: Mapping[int, Thrift]) -> None:
        size = _number(page, 2)
        self.uncompressed_bytes += size
        self.pages += 1
        if not 0 <= size <= MAX_PAGE_BYTES or self.uncompressed_bytes > MAX_UNCOMPRESSED_BYTES:
            raise OutOfBoundsError(f"a page of {size} bytes when decompressed")
        if self.pages > MAX_PAGES:
            raise OutOfBoundsError(f"more than {MAX_PAGES} pages")
        texts = _number(_structure(page[7]), 1) if 7 in page else 0
        if not 0 <= texts <= self.rows:
            raise OutOfBoundsError(f"a dictionary of {texts} values for {self.rows} rows")


def _check_column(content: bytes, column: Mapping[int, Thrift], kind: int, rows: int, budget: _Budget) -> None:
    """One column of a group: its pages must fill its place in the file exactly."""
    if 1 in column or 8 in column:
        raise OutOfBoundsError("a column is in another file, or encrypted")
    held = _structure(column.get(3, 0))
    if _number(held, 1) != kind or _number(held, 4) not in (UNCOMPRESSED, SNAPPY):
        raise OutOfBoundsError("a column is of another type, or compressed by another codec than Snappy")
    if not rows >= 0 or _number(held, 5) != rows:
        raise OutOfBoundsError("a column is not as long as its group")
    if not all(isinstance(each, int) and each in _ENCODINGS for each in _list(held, 2)):
        raise OutOfBoundsError("a column has an unknown encoding")
    begin = _number(held, 9)
    if 0 < (_number(held, 11) if 11 in held else 0) < begin:
        begin = _number(held, 11)
    end = begin + _number(held, 7)
    if not len(_MAGIC) <= begin <= end <= len(content):
        raise OutOfBoundsError("a column is not inside the file")
    while begin < end:
        reader = _Compact(content, begin, min(end, begin + MAX_PAGE_HEADER_BYTES))
        page = reader.structure()
        begin = reader.place + max(_number(page, 3), 0)
        if begin > end:
            raise OutOfBoundsError("a page does not end inside its column")
        budget.add(page)


def _number(fields: Mapping[int, Thrift], number: int) -> int:
    value = fields.get(number)
    if not isinstance(value, int):
        raise OutOfBoundsError(f"a number is missing (field {number})")
    return value


def _list(fields: Mapping[int, Thrift], number: int) -> list[Thrift]:
    value = fields.get(number)
    if not isinstance(value, list):
        raise OutOfBoundsError(f"a list is missing (field {number})")
    return value


def _structure(value: Thrift) -> Mapping[int, Thrift]:
    if not isinstance(value, dict):
        raise OutOfBoundsError("a structure is missing")
    return value


class _Compact:
    """Reads a structure in Thrift's compact protocol, between two places of the file."""

    def __init__(self, content: bytes, place: int, end: int) -> None:
        self._content, self.place, self._end = content, place, end

    def structure(self, nesting: int = 0) -> dict[int, Thrift]:
        """Raises OutOfBoundsError if it does not end in its place, is nested too deeply, or repeats a field."""
        fields: dict[int, Thrift] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            if number in fields:
                raise OutOfBoundsError("a header repeats a field")
            kind = head & 15
            fields[number] = kind & 1 if kind in (1, 2) else self._value(kind, nesting)
        return fields

    def _value(self, kind: int, nesting: int) -> Thrift:
        if nesting > MAX_NESTING:
            raise OutOfBoundsError("a header is nested too deeply")
        if kind in (1, 2, 3):  # a truth value in a list, a byte
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:  # a double
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):  # a list or a set
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            if count > self._end - self.place:  # each takes a byte or more
                raise OutOfBoundsError("a list in a header is longer than the header")
            return [self._value(head & 15, nesting + 1) for _ in range(count)]
        if kind == 12:
            return dict(self.structure(nesting + 1))
        raise OutOfBoundsError("a header has a field of unknown type")

    def _byte(self) -> int:
        place = self.place
        if place >= self._end:
            raise OutOfBoundsError(_TOO_LONG)
        self.place = place + 1
        return self._content[place]

    def _bytes(self, count: int) -> bytes:
        begin = self.place
        self.place += count
        if self.place > self._end:
            raise OutOfBoundsError(_TOO_LONG)
        return self._content[begin : self.place]

    def _varint(self) -> int:
        value = self._byte()
        if value < 128:  # as nearly all are
            return value
        value &= 127
        for shift in range(7, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise OutOfBoundsError("a number in a header is too long")

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
