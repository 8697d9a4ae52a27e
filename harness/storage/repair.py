"""Repairs a damaged attempt from what is proven to be the same: another copy, or the artifact that its run left.

A proof is a hash: what replaces a damaged file has the sha256 that the record's seal names, or the record put in place
has the seal that the damaged one named. Nothing is repaired on likeness alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness.core.foreign import shown
from harness.core.record import Outcome, RunRecord
from harness.core.run import RunSpec
from harness.core.upgrade import upgrade
from harness.errors import ResultsError
from harness.storage.evidence import write_evidence
from harness.storage.json_codec import decode
from harness.storage.pack import read_attempt_file
from harness.storage.reading import read_attempt, read_raw
from harness.storage.seal import (
    EVIDENCE,
    KEY,
    LOG,
    MAX_BYTES,
    RECORD,
    FileSeal,
    Seal,
    check_seal,
    file_seal,
)
from harness.storage.store import Store, record_file

FILES = (RECORD, EVIDENCE, LOG)
_NAMED_SEAL = re.compile(rb'"sha256":\s*"([0-9a-f]{64})"')
"""The seal that a damaged record names, as its first hash."""


@dataclass(frozen=True)
class Replacement:
    """The files of a whole attempt, and where they are from."""

    files: Mapping[str, bytes]
    source: str


def from_copy(folder: Path, twin: Path, twin_root: Path) -> Replacement | None:
    """The attempt in a folder as another copy of the results has it; None if that is not proven to be the same."""
    other = read_attempt(twin, twin_root)
    if other.record is None or other.seal is None:
        return None
    mine, theirs = _seal(folder), other.seal
    have = files_of(folder)
    if mine is None:
        evidence = theirs.files.get(EVIDENCE)
        same = _named_seal(folder) == theirs.sha256 or (evidence is not None and _is(have.get(EVIDENCE), evidence))
        if not same or other.damage is not None:
            return None
        return Replacement(files_of(twin), shown(twin))
    files = {RECORD: have[RECORD]}  # it is whole, so each other file must be what its seal names
    for name, sealed in mine.files.items():
        content = next((each for each in (have.get(name), _content(twin / name)) if _is(each, sealed)), None)
        if content is not None:
            files[name] = content
    proven = EVIDENCE in files or EVIDENCE not in mine.files
    return Replacement(files, shown(twin)) if proven and files != have else None


def from_artifact(
    folder: Path, store: Store, kept: Callable[[RunSpec], Outcome | None], source: str
) -> Replacement | None:
    """The attempt in a folder with the outcome that its run left in the cache; None if it is not proven to be that one.

    The record must still be JSON, and with the cached outcome it must have the seal that it names.
    """
    try:
        raw = read_raw(folder)
        record = decode(RunRecord, upgrade(raw, RECORD), RECORD)
        named = decode(Seal, raw.get(KEY), RECORD)
    except ResultsError:
        return None
    here = (folder.parent.name, folder.name) == (record.spec.run_id, str(record.attempt))
    outcome = kept(record.spec) if here else None
    if outcome is None:
        return None
    again = store.anonymizer.record(replace(record, outcome=outcome))
    evidence = write_evidence(again.outcome.measurements)
    others = {name: each for name, each in named.files.items() if name != EVIDENCE}
    sealed = others if evidence is None else {**others, EVIDENCE: file_seal(evidence)}
    made = record_file(again, sealed)
    if _NAMED_SEAL.findall(made)[:1] != [named.sha256.encode()]:
        return None
    log = _content(folder / LOG)
    files = {RECORD: made, EVIDENCE: evidence, LOG: log if LOG in sealed and _is(log, sealed[LOG]) else None}
    return Replacement({name: content for name, content in files.items() if content is not None}, source)


def without_log(record: RunRecord, seal: Seal) -> bytes:
    """The ``record.json`` of an attempt whose log is gone or damaged, sealed without it."""
    return record_file(record, {name: sealed for name, sealed in seal.files.items() if name != LOG})


def sealed_now(record: RunRecord, folder: Path) -> bytes:
    """The ``record.json`` of an older attempt, upgraded and sealed with the files as they are now.

    Raises ResultsError for an early record, whose run id counts less than is known of it now.
    """
    if record.spec.run_id != folder.parent.name:
        raise ResultsError(f"its run id would be {record.spec.run_id} now, so it stays as it is")
    present = {name: _content(folder / name) for name in (EVIDENCE, LOG)}
    return record_file(record, {name: file_seal(content) for name, content in present.items() if content is not None})


def sealed_record(folder: Path) -> RunRecord | None:
    """The record in a folder, wherever it belongs, if its seal holds; the files beside it are not checked."""
    try:
        raw = read_raw(folder)
        return None if check_seal(raw, RECORD) is None else decode(RunRecord, upgrade(raw, RECORD), RECORD)
    except ResultsError:
        return None


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of the files of an attempt, by name; one that is missing, or too large to be read, is left out."""
    return {name: content for name in FILES if (content := _content(folder / name)) is not None}


def _seal(folder: Path) -> Seal | None:
    """The seal of the record in a folder, if that is whole."""
    try:
        return check_seal(read_raw(folder), RECORD)
    except ResultsError:
        return None


def _named_seal(folder: Path) -> str:
    content = _content(folder / RECORD) or b""
    match = _NAMED_SEAL.search(content)
    return match[1].decode() if match else ""


def _content(path: Path) -> bytes | None:
    try:
        return read_attempt_file(path, MAX_BYTES[path.name], ResultsError)
    except ResultsError:
        return None


def _is(content: bytes | None, sealed: FileSeal) -> bool:
    return content is not None and file_seal(content) == sealed
