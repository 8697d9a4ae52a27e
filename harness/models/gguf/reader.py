"""Reads the header of a GGUF file strictly: metadata and the places of its tensors, but no weights.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: magic, version, two counts, metadata, tensor
descriptions, and the tensors, each aligned. Every count and length is checked against the file before it is used; the
gguf package's own reader does not, and so loops on a header that counts 2⁶⁴ keys.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import BinaryIO

from harness.core.foreign import open_file, quoted, shown
from harness.errors import SourceError
from harness.models.config import MAX_LAYERS, MAX_SIZE
from harness.models.headers import MAX_TENSORS
from harness.models.safetensors import MAX_NAME

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 96 * 2**20
"""Of metadata and tensor descriptions; those of the largest vocabularies take 20 MB."""
MAX_TEXT_BYTES = 16 * 2**20
"""Of one text, such as a chat template."""
MAX_ELEMENTS = 2_000_000
"""Of all lists in the metadata; a vocabulary of 256,000 tokens with scores, types and merges has 1.3 million."""
MAX_KEYS = 10_000
MAX_DIMENSIONS = 4
ALIGNMENT = 32
"""Of the tensors, in bytes, unless ``general.alignment`` says otherwise."""

Value = str | int | float | bool | list["Value"]
_STRING, _LIST = 8, 9
_SCALARS: Mapping[int, str] = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"},
}
"""struct's codes of the format's types of single values."""


@dataclass(frozen=True)
class _Described:
    """A tensor as the file describes it: ggml's number of its type, and its offset from the first tensor.

    ``shape`` is in transformers' order.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as stored in the file; ``type`` is ggml's name, ``shape`` is in transformers' order.

    ``begin`` is its place in the file.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    begin: int


@dataclass(frozen=True)
class GgufHeader:
    """What a file says about itself. Values are read by type, so that a wrong one is named."""

    file: Path
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]

    def text(self, key: str) -> str | None:
        """The text under a key; None if there is none. Raises SourceError if it holds something else."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def size(self, key: str, most: int = MAX_SIZE) -> int | None:
        """The whole number under a key; None if there is none. Raises SourceError if it is not from 0 to ``most``."""
        value = self.metadata.get(key)
        if value is not None and not _is_size(value, most):
            raise self._wrong(key, f"a whole number from 0 to {most}")
        return value if isinstance(value, int) else None

    def sizes(self, key: str) -> int | list[int] | None:
        """A whole number, or one per layer. Raises SourceError for anything else."""
        value = self.metadata.get(key)
        if not isinstance(value, list):
            return self.size(key)
        if not 0 < len(value) <= MAX_LAYERS or not all(_is_size(each, MAX_SIZE) for each in value):
            raise self._wrong(key, f"whole numbers from 0 to {MAX_SIZE}, one per layer")
        return [int(each) for each in value if isinstance(each, int)]

    def flag(self, key: str) -> bool | None:
        """The truth value under a key; None if there is none. Raises SourceError if it holds something else."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def texts(self, key: str) -> list[str] | None:
        """The texts under a key; None if there are none. Raises SourceError if it holds something else."""
        value = self.metadata.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise self._wrong(key, "a list of texts")
        return value  # type: ignore[return-value]  # checked above

    def numbers(self, key: str) -> list[float] | None:
        """The finite numbers under a key; None if there are none. Raises SourceError if it holds something else."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(
            type(each) in (int, float) and math.isfinite(each)  # type: ignore[arg-type]
            for each in value
        ):
            raise self._wrong(key, "a list of finite numbers")
        return value  # type: ignore[return-value]  # checked above

    def _wrong(self, key: str, expected: str) -> SourceError:
        return SourceError(f"{shown(self.file)}: {key} is {quoted(self.metadata[key])}; expected {expected}")


def read(file: Path) -> GgufHeader:
    """The header of a GGUF file. Raises SourceError if it is not one, too new, cut short, or wrong in any field.

    The last one is kept as long as its file is untouched: a plan reads it for several purposes, and each time the
    whole vocabulary.
    """
    try:
        state = file.stat()
    except OSError:  # opening it says what is wrong
        return _read(file)
    return _kept(file, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=1)
def _kept(file: Path, *state: int) -> GgufHeader:
    return _read(file)


def _read(file: Path) -> GgufHeader:
    with open_file(file, SourceError) as (stream, size):
        start = stream.read(8)
        if start[:4] != MAGIC:
            raise SourceError(f"{shown(file)}: no GGUF file: it begins with {start[:4]!r}, not {MAGIC!r}")
        version = int.from_bytes(start[4:], "little")
        if version and version % 2**16 == 0:
            raise SourceError(f"{shown(file)}: its bytes are in the other order (big-endian); convert the model anew")
        if len(start) == 8 and version not in VERSIONS:
            supported = " and ".join(map(str, VERSIONS))
            raise SourceError(
                f"{shown(file)}: GGUF version {version}, and {supported} are read here; convert the model anew"
            )
        try:
            return _Parser(file, stream, size).header()
        except _Damage as damage:
            raise SourceError(f"{shown(file)}: cut short or damaged, fetch or convert it again ({damage})") from None


def _is_size(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


@cache
def _block_sizes() -> Mapping[int, tuple[str, int, int]]:
    """ggml's types by number: the name, the elements of a block, and its bytes.

    They are in gguf's module of constants, which is loaded alone: the package imports numpy and all that writes files,
    and planning needs neither.
    """
    package = find_spec("gguf")
    assert package is not None, "gguf is a dependency"
    found = PathFinder.find_spec("constants", package.submodule_search_locations)
    assert found is not None, "gguf has a module of constants"
    assert found.loader is not None, "it is a file"
    constants = module_from_spec(found)
    found.loader.exec_module(constants)
    return {int(kind): (kind.name, *sizes) for kind, sizes in constants.GGML_QUANT_SIZES.items()}


class _Damage(Exception):
    """The file breaks the format; the message says how."""


class _Parser:
    """Reads a header from its beginning to its end, in pieces of the file as they are needed.

    The content is what was read so far, without magic and version; the place is how much of it was used.
    """

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self._file, self._stream, self._size = file, stream, size
        self._content, self._place = b"", 0
        self._elements = 0

    def header(self) -> GgufHeader:
        tensor_count, key_count = self._number("Q"), self._number("Q")
        if key_count > min(MAX_KEYS, self._left // 13):
            raise _Damage(f"it counts {key_count} metadata keys")
        if tensor_count > min(MAX_TENSORS, self._left // 24):
            raise _Damage(f"it counts {tensor_count} tensors")
        metadata: dict[str, Value] = {}
        for _ in range(key_count):
            key = self._name("a metadata key")
            if key in metadata:
                raise _Damage(f"the key {quoted(key)} appears twice")
            metadata[key] = self._value(self._number("I"), key)
        described = [self._tensor() for _ in range(tensor_count)]
        if len({each.name for each in described}) != tensor_count:
            raise _Damage("two tensors have one name")
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise _Damage(f"general.alignment is {quoted(alignment)}, which is no power of two")
        end = 8 + self._place
        start = end + -end % alignment
        sizes = _block_sizes()
        tensors = tuple(self._placed(each, sizes, start, alignment) for each in described)
        return GgufHeader(self._file, metadata, tensors)

    @property
    def _left(self) -> int:
        """Bytes of the file behind what was used."""
        return self._size - 8 - self._place

    def _take(self, count: int) -> int:
        """Uses so many bytes; their place in the content."""
        begin, end = self._place, self._place + count
        if end > len(self._content):
            if count > self._left:
                raise _Damage("it ends within its header")
            if end > MAX_HEADER_BYTES:
                raise _Damage(f"its header has more than {MAX_HEADER_BYTES} bytes")
            self._content += self._stream.read(max(end - len(self._content), len(self._content), 2**16))
            if end > len(self._content):
                raise _Damage("it ends within its header")
        self._place = end
        return begin

    def _number(self, code: str) -> int:
        size = 8 if code == "Q" else 4
        begin = self._take(size)
        return int.from_bytes(self._content[begin : begin + size], "little")

    def _text(self) -> str:
        length = self._number("Q")
        if length > MAX_TEXT_BYTES:
            raise _Damage(f"a text of {length} bytes")
        begin = self._take(length)
        try:
            return str(self._content[begin : begin + length], "utf-8")
        except UnicodeDecodeError as error:
            raise _Damage(f"a text that is not UTF-8: {error.reason}") from None

    def _name(self, what: str) -> str:
        name = self._text()
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise _Damage(f"{what} is {quoted(name)}")
        return name

    def _value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self._text()
        if kind == _LIST:
            return self._list(key)
        if kind not in _SCALARS:
            raise _Damage(f"{quoted(key)} is of the unknown type {kind}")
        (value,) = self._scalars(_SCALARS[kind], 1)
        return value

    def _list(self, key: str) -> Value:
        """Lists of lists are refused: no known key has any, and llama.cpp reads none either."""
        kind, count = self._number("I"), self._number("Q")
        self._elements += count
        if count > self._left or self._elements > MAX_ELEMENTS:
            raise _Damage(f"{quoted(key)} counts {count} values")
        if kind in _SCALARS:
            return self._scalars(_SCALARS[kind], count)
        if kind == _STRING:
            return self._texts(count)
        raise _Damage(f"{quoted(key)} is a list of the unknown type {kind}")

    def _texts(self, count: int) -> list[Value]:
        """So many texts. A vocabulary has 100,000 and more: those already read take no calls."""
        texts: list[Value] = []
        while len(texts) < count:
            texts.append(self._text())  # reads on, or says what is wrong
            content, place, read = self._content, self._place, len(self._content)
            while len(texts) < count and (begin := place + 8) <= read:
                length = int.from_bytes(content[place:begin], "little")
                if length > read - begin or length > MAX_TEXT_BYTES:
                    break
                try:
                    texts.append(str(content[begin : begin + length], "utf-8"))
                except UnicodeDecodeError:
                    break
                place = begin + length
            self._place = place
        return texts

    def _scalars(self, code: str, count: int) -> list[Value]:
        begin = self._take(struct.calcsize(f"<{code}") * count)
        if code == "?" and not set(self._content[begin : self._place]) <= {0, 1}:
            raise _Damage("a truth value is neither 0 nor 1")
        return list(struct.unpack_from(f"<{count}{code}", self._content, begin))

    def _tensor(self) -> _Described:
        name, dimensions = self._name("a tensor's name"), self._number("I")
        if dimensions > MAX_DIMENSIONS:
            raise _Damage(f"{quoted(name)} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        return _Described(name, shape[::-1], self._number("I"), self._number("Q"))

    def _placed(
        self, described: _Described, sizes: Mapping[int, tuple[str, int, int]], start: int, alignment: int
    ) -> GgufTensor:
        name, shape = described.name, described.shape
        if described.type not in sizes:
            raise _Damage(f"{quoted(name)} is of the unknown type {described.type}")
        known, block, block_bytes = sizes[described.type]
        if (shape[-1] if shape else 1) % block:
            raise _Damage(f"rows of {quoted(name)} are no whole number of blocks of {known}")
        size, begin = math.prod(shape) // block * block_bytes, start + described.offset
        if described.offset % alignment or begin + size > self._size:
            raise _Damage(f"{quoted(name)} is not inside the file")
        return GgufTensor(name, known, shape, size, begin)
