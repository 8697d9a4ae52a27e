"""The seal of a folder: a JSON file with a digest of itself, and the sizes and hashes of the files beside it.

A file without a seal is an old one, and its reader decides what that means. A seal that does not match means that the
file was edited, cut or damaged since it was written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.foreign import parse_json, read_file
from harness.core.identity import full_digest
from harness.errors import ResultsError, SourceError, reason_of
from harness.storage.checksums import file_sha256

SEAL = "seal"
"""The key of the digest."""


@dataclass(frozen=True)
class SealedFile:
    """A file when it was sealed; ``path`` is relative to its folder, with slashes."""

    path: str
    bytes: int
    sha256: str


def seal_of(content: Mapping[str, Any]) -> str:
    """The digest of all that a JSON object holds except its own seal. Raises ValueError for NaN and infinity."""
    return full_digest({key: value for key, value in content.items() if key != SEAL})


def with_seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same JSON object with its seal."""
    return {**content, SEAL: seal_of(content)}


def has_valid_seal(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object is what was sealed. False also if it has no seal."""
    try:
        return content.get(SEAL) == seal_of(content)
    except ValueError:  # a number that no sealed file holds
        return False


def read_sealed_json(path: Path, limit_bytes: int) -> dict[str, Any]:
    """A JSON object that was written with a seal. Raises ResultsError if it cannot be read, or is not as written."""
    raw = parse_json(read_file(path, limit_bytes, ResultsError), str(path), ResultsError)
    if not isinstance(raw, dict) or not has_valid_seal(raw):
        raise ResultsError(f"{path}: not what was written: it was edited, cut or damaged")
    return raw


def seal_files(folder: Path) -> tuple[SealedFile, ...]:
    """All files of a folder and the folders in it, hashed, in the order of their paths."""
    return tuple(
        SealedFile(path, (folder / path).stat().st_size, file_sha256(folder / path)) for path in _files(folder)
    )


def find_damage(folder: Path, sealed: Sequence[SealedFile], read_data: bool, besides: str = "") -> Iterator[str]:
    """How the files of a folder differ from when they were sealed, each with its path.

    Without ``read_data`` only names, types and sizes are compared. ``besides`` is the file that holds the seal. Hidden
    files that were added are ignored, because file systems and editors leave them.
    """
    for file in sealed:
        reason = _damage(folder / file.path, file, read_data)
        if reason is not None:
            yield f"{folder / file.path}: {reason}"
    known = {besides, *(file.path for file in sealed)}
    for path in _files(folder):
        if path not in known and not any(part.startswith((".", "__pycache__")) for part in path.split("/")):
            yield f"{folder / path}: was added later"


def _damage(path: Path, sealed: SealedFile, read_data: bool) -> str | None:
    if not _is_inside(sealed.path):
        return "not a path inside its folder"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        if status.st_size != sealed.bytes:
            return f"{status.st_size} bytes, but {sealed.bytes} when it was written"
        if read_data and file_sha256(path) != sealed.sha256:
            return "its content is not what was written (another sha256)"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({reason_of(error)})"
    except SourceError as error:
        return str(error)
    return None


def _is_inside(path: str) -> bool:
    """Whether a stored path stays in its folder: a file's content must not make a reader open other files."""
    return not path.startswith("/") and not {"", ".", ".."} & set(path.split("/")) and "\0" not in path


def _files(folder: Path) -> list[str]:
    """The relative paths of all that is not a folder, sorted. Links to folders are not followed."""
    found = []
    for parent, _, names in os.walk(folder):
        found += [Path(parent, name).relative_to(folder).as_posix() for name in names]
    return sorted(found)
