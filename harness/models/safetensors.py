"""The header of a safetensors file, validated as the format defines it, and the bytes of single tensors.

The file is the header's length (8 bytes, little-endian), the header as JSON, and the tensors one after another without
gaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

from harness.core.foreign import open_file, parse_json, quoted, shown
from harness.errors import SourceError

MAX_HEADER_BYTES = 48 * 2**20
"""The format allows 100 MB. A tensor takes some 120 bytes and 8 values."""
MAX_HEADER_VALUES = 3_000_000
"""Enough for 375,000 tensors in one file: 4-bit experts have four each, and some publishers do not split a model."""
MAX_DIMENSIONS = 16
MAX_NAME = 500
"""Characters of a tensor's name. The harness shows names, so they must also be printable."""
_METADATA = "__metadata__"
_BITS: Mapping[str, int] = MappingProxyType(
    {
        **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8},
        **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
        **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32},
        **{"F64": 64, "I64": 64, "U64": 64, "C64": 64},
    }
)
"""Bits of an element, by the format's names of dtypes."""


@dataclass(frozen=True)
class Placed:
    """One tensor: ``begin`` and ``end`` are its place in the file, in bytes from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read(file: Path) -> dict[str, Placed]:
    """Every tensor of a file, by name. Raises SourceError for whatever is not a whole safetensors file."""
    name = shown(file)
    with open_file(file, SourceError) as (stream, size):
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise _damaged(name, "its header is longer than the file")
        if length > MAX_HEADER_BYTES:
            raise _damaged(name, f"its header has {length} bytes, and at most {MAX_HEADER_BYTES} are read")
        what = f"{name}: not a whole safetensors file: its header"
        header = parse_json(stream.read(length), what, SourceError, MAX_HEADER_VALUES)
    if not isinstance(header, dict):
        raise _damaged(name, "its header is not a mapping")
    metadata = header.pop(_METADATA, None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise _damaged(name, f"{_METADATA} must map names to text")
    entries = {key: _entry(name, key, entry, 8 + length) for key, entry in header.items()}
    _check_places(name, entries, 8 + length, size)
    return entries


def contents(file: Path, places: Mapping[str, Placed]) -> dict[str, bytes]:
    """The bytes of some of a file's tensors, by name. Raises SourceError if the file ends before them."""
    found: dict[str, bytes] = {}
    if not places:
        return found
    with open_file(file, SourceError) as (stream, _):
        for name, place in places.items():
            stream.seek(place.begin)
            found[name] = stream.read(place.end - place.begin)
            if len(found[name]) < place.end - place.begin:
                raise SourceError(f"{shown(file)}: cut short within {name!r}")
    return found


def _entry(file: str, name: str, raw: Any, start: int) -> Placed:
    if len(name) > MAX_NAME or not name.isprintable():
        raise _damaged(file, f"the tensor name {quoted(name)} is too long or not printable")
    if not isinstance(raw, dict):
        raise _damaged(file, f"tensor {quoted(name)} is not a mapping")
    dtype, shape, places = raw.get("dtype"), raw.get("shape"), raw.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _damaged(file, f"tensor {quoted(name)} has the unknown dtype {quoted(dtype)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _damaged(file, f"tensor {quoted(name)} has the shape {quoted(shape)}")
    if not _are_sizes(places) or len(places) != 2:
        raise _damaged(file, f"tensor {quoted(name)} has the data_offsets {quoted(places)}")
    begin, end = places
    if (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
        raise _damaged(file, f"tensor {quoted(name)} takes {end - begin} bytes, which its shape and dtype do not")
    return Placed(dtype, tuple(shape), start + begin, start + end)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    """Whether this is a list of whole numbers from 0 to 2⁶³ - 1."""
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _check_places(file: str, entries: Mapping[str, Placed], start: int, size: int) -> None:
    """Raises SourceError unless the tensors follow one another without gaps up to the end of the file."""
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise _damaged(file, f"tensor {quoted(name)} does not begin where the one before it ends")
        end = entry.end
        if end > size:
            raise _damaged(file, f"it is cut short within {quoted(name)}")
    if end < size:
        raise _damaged(file, f"{size - end} bytes follow the last tensor")


def _damaged(file: str, reason: str) -> SourceError:
    return SourceError(f"{file}: not a whole safetensors file: {reason}; fetch or write it again")
