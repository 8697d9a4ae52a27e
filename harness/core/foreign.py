"""Reading files that strangers made: recipes, headers, records. Sizes and nesting are bounded before memory is used.

Whatever is wrong with such a file is the caller's UsageError, with the file's name: exit code 2, never a traceback.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import UsageError, reason_of

BLOCK_BYTES = 2**20
MAX_JSON_DEPTH = 64
"""Levels of nesting in any JSON that the harness reads."""
MAX_JSON_VALUES = 1_000_000
"""Values in any JSON that the harness reads: in memory each may take 250 bytes."""
MAX_QUOTED = 80
"""Characters of a stranger's text that a message repeats."""
MAX_SHOWN_PATH = 1000
"""Characters of a path that a message shows."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@contextmanager
def open_file(path: Path, error: type[UsageError]) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file, open for reading, and its size in bytes.

    Raises ``error`` if there is none or it cannot be read, and for anything that could block or never end: a FIFO, a
    socket, a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise error(f"{shown(path)}: no such file") from None
    except (OSError, ValueError) as fault:  # ValueError: a zero byte in the path
        raise _unreadable(path, fault, error) from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{shown(path)}: this is a folder; name a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{shown(path)}: not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file, status.st_size
    except OSError as fault:
        raise _unreadable(path, fault, error) from None
    finally:
        os.close(descriptor)


def _unreadable(path: Path, fault: OSError | ValueError, error: type[UsageError]) -> UsageError:
    return error(f"{shown(path)}: cannot read the file ({reason_of(fault)})")


def read_file(path: Path, limit_bytes: int, error: type[UsageError]) -> bytes:
    """The content of a regular file. Raises ``error`` as ``open_file``, and if it has more than ``limit_bytes``."""
    with open_file(path, error) as (file, _):
        blocks, left = [], limit_bytes + 1
        while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):  # read(left) would reserve all of it
            blocks.append(block)
            left -= len(block)
    content = b"".join(blocks)
    if len(content) > limit_bytes:
        raise error(f"{shown(path)}: larger than {limit_bytes} bytes, the most that such a file may have")
    return content


def parse_json(content: bytes, name: str, error: type[UsageError], limit_values: int = MAX_JSON_VALUES) -> Any:
    """Parses JSON strictly.

    Raises ``error`` if it is not JSON in UTF-8, repeats a key, is nested more than 64 levels deep, or holds more than
    ``limit_values`` values.
    """
    if content.count(b",") + content.count(b"[") + content.count(b"{") > limit_values:  # before memory is used
        raise error(f"{name}: more than {limit_values} values, the most that such a file may hold")
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise error(f"{name}: nested too deeply") from None
    except ValueError as fault:  # also UnicodeDecodeError, and a number with more digits than Python converts
        raise error(f"{name}: not valid JSON: {fault}") from None
    if _deeper_than(value, MAX_JSON_DEPTH):
        raise error(f"{name}: nested more than {MAX_JSON_DEPTH} levels deep")
    if _SURROGATE.search(content) and not _is_unicode(value):
        raise error(f"{name}: a text in it has half of a surrogate pair, which is no character")
    return value


def shown(path: Path | str) -> str:
    """A path or a word on one line, for messages, whatever characters it has and however many."""
    text = str(path)
    short = text if len(text) <= MAX_SHOWN_PATH else f"{text[:MAX_SHOWN_PATH]}…"
    return short if short.isprintable() else ascii(short)


def locate(written: str, folder: Path, error: type[UsageError]) -> Path:
    """The path that a user wrote: ``~`` expanded, relative to ``folder``, links followed.

    Raises ``error`` if no path can be written so, for links that go in a circle, and for what may not be looked at.
    Whether anything is there is for the caller to see.
    """
    try:
        path = (folder / Path(written).expanduser()).resolve()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (RuntimeError, ValueError) as fault:  # no such user, links in a circle; a zero byte
        raise error(f"{quoted(written)} is not a path: {fault}") from None
    except OSError as fault:
        raise error(f"{quoted(written)}: {reason_of(fault)}") from None
    return path


def shortened(text: str, most: int = MAX_QUOTED) -> str:
    """A text that may come from a stranger, for a message: as it is if it is printable and not long."""
    return text if text.isprintable() and len(text) <= most else quoted(text, most)


def quoted(value: object, most: int = MAX_QUOTED) -> str:
    """A value from a stranger's file for a message: on one line, printable, and not long."""
    try:
        whole = repr(value[: most + 1] if isinstance(value, str) else value)
    except ValueError:
        return "a number of more digits than Python writes"
    return whole if len(whole) <= most else f"{whole[:most]}…"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {quoted(repeated)} appears twice")
    return found


def _is_unicode(value: Any) -> bool:
    """Whether every text can be written in UTF-8. Python's parser also accepts half a pair of surrogates."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return all(_is_unicode(name) and _is_unicode(each) for name, each in value.items())
    return not isinstance(value, list) or all(map(_is_unicode, value))


def _deeper_than(value: object, levels: int) -> bool:
    """Goes down one level at a time, so that it needs no stack."""
    level = [value]
    for _ in range(levels):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)
