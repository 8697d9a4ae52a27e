"""The seal of a record: what ``record.json`` says about its own content and about the files beside it.

A seal holds the sha256 of the record's canonical JSON (everything but this sha256), and size and sha256 of its evidence
and its log. It finds damage and careless edits. It is no signature: whoever forges a record can also seal it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.core.identity import full_digest
from harness.core.upgrade import FIRST_SEALED, SCHEMA_VERSION
from harness.errors import ResultsError
from harness.storage.json_codec import decode
from harness.storage.pack import has_attempt_file, read_attempt_file

KEY = "seal"
"""The key in ``record.json``."""
_KEYS = {"sha256", "files"}
_CHANGED = "its content is not what was sealed: it was edited, or is damaged"
RECORD, EVIDENCE, LOG = "record.json", "evidence.parquet", "log.txt"
MAX_BYTES: Mapping[str, int] = {RECORD: 16 * 2**20, EVIDENCE: 128 * 2**20, LOG: 64 * 2**20}
"""The largest files of a record that are written or read."""


@dataclass(frozen=True)
class FileSeal:
    """Size and hash of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Seal:
    """``sha256`` is over the record's JSON with this seal, but without ``sha256`` itself. ``files`` are by name."""

    sha256: str
    files: Mapping[str, FileSeal]


def file_seal(content: bytes) -> FileSeal:
    return FileSeal(len(content), hashlib.sha256(content).hexdigest())


def seal(raw: Mapping[str, Any], files: Mapping[str, FileSeal]) -> dict[str, Any]:
    """A record's JSON with its seal, which comes first, so that a file cut short still has it."""
    listed = {name: asdict(each) for name, each in files.items()}
    return {KEY: {"sha256": _sha256(raw, listed), "files": listed}} | {
        key: value for key, value in raw.items() if key != KEY
    }


def check_seal(raw: Mapping[str, Any], name: str) -> Seal | None:
    """The seal of a record's JSON; None for a record of a version that had none, and for one of a newer harness.

    Raises ResultsError if it is missing, or if the content differs from what was sealed: then its version may be what
    is damaged, so that is not believed.
    """
    version = raw.get("schema_version")
    if not isinstance(version, int):
        return None  # not a record
    if version > SCHEMA_VERSION:
        listed = raw.get(KEY)
        if isinstance(listed, dict) and listed.keys() == _KEYS and _sha256(raw, listed["files"]) != listed["sha256"]:
            raise ResultsError(f"{name}: {_CHANGED}")
        return None
    if version < FIRST_SEALED:
        if KEY in raw:
            raise ResultsError(f"{name}: has a seal, which records of schema version {version} never had")
        return None
    if KEY not in raw:
        raise ResultsError(f"{name}: its seal is missing")
    found = decode(Seal, raw[KEY], f"{name}: {KEY}")
    known = raw[KEY].keys() == _KEYS and found.files.keys() <= {EVIDENCE, LOG}
    if not known or _sha256(raw, raw[KEY]["files"]) != found.sha256:
        raise ResultsError(f"{name}: {_CHANGED}")
    return found


def read_sealed(path: Path, sealed: Seal) -> bytes | None:
    """A file of a record, as it was sealed; None if the record has no such file.

    Raises ResultsError if the file is gone, was added or changed.
    """
    expected = sealed.files.get(path.name)
    if expected is None:
        if has_attempt_file(path):
            raise ResultsError(f"{path.name}: the record was sealed without such a file")
        return None
    content = read_attempt_file(path, MAX_BYTES[path.name], ResultsError)
    if file_seal(content) != expected:
        cut = f", {len(content)} bytes instead of {expected.bytes}" if len(content) != expected.bytes else ""
        raise ResultsError(f"{path.name}: its content is not what was sealed{cut}")
    return content


def _sha256(raw: Mapping[str, Any], files: object) -> str:
    return full_digest({**raw, KEY: {"files": files}})
