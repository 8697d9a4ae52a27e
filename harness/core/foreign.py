"""Reading files that strangers made: recipes, headers, records. Sizes and nesting are bounded before memory is used.

Whatever is wrong with such a file is the caller's UsageError, with the file's name: exit code 2, never a traceback.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from harness.errors import UsageError

MAX_JSON_DEPTH = 64
"""Levels of nesting in any JSON that the harness reads."""


def read_file(path: Path, limit_bytes: int, error: type[UsageError]) -> bytes:
    """The content of a regular file of at most ``limit_bytes``.

    Raises ``error`` if there is none or it is larger, and for anything that could block or never end: a FIFO, a
    socket, a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise error(f"{shown(path)}: this is a folder; name a file in it")
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{shown(path)}: not a regular file")
            content = file.read(limit_bytes + 1)
    except FileNotFoundError:
        raise error(f"{shown(path)}: no such file") from None
    except (OSError, ValueError) as fault:  # ValueError: a zero byte in the path
        reason = fault.strerror if isinstance(fault, OSError) and fault.errno != errno.ENOTDIR else str(fault)
        raise error(f"{shown(path)}: cannot read the file ({reason})") from None
    if len(content) > limit_bytes:
        raise error(f"{shown(path)}: larger than {limit_bytes} bytes, the most that such a file may have")
    return content


def parse_json(content: bytes, name: str, error: type[UsageError]) -> Any:
    """Parses JSON strictly. Raises ``error`` if it is not JSON, repeats a key or is nested more than 64 levels deep."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise error(f"{name}: nested too deeply") from None
    except ValueError as fault:  # also UnicodeDecodeError, and a number with more digits than Python converts
        raise error(f"{name}: not valid JSON: {fault}") from None
    if _deeper_than(value, MAX_JSON_DEPTH):
        raise error(f"{name}: nested more than {MAX_JSON_DEPTH} levels deep")
    return value


def shown(path: Path) -> str:
    """A path on one line, for messages, whatever characters it has."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!a} appears twice")
    return found


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
