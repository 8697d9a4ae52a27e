"""Reading results: the attempts in a folder, and what of them is damaged.

A damaged attempt never hides the others: it comes back as ``Damaged``, beside the records. Only a record of a newer
harness ends the reading, because nothing is known about what it says.

A record's content never determines a path: a record is read only if its recipe, run id and attempt match the folders
that contain it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, overload

from harness.core.collector import uncollected
from harness.core.column import LazyColumn
from harness.core.foreign import parse_json, quoted, shown
from harness.core.identity import NAME, RUN_ID
from harness.core.protocols import fault_of
from harness.core.record import Damaged, RunRecord
from harness.core.upgrade import upgrade
from harness.core.upgrade.specs import is_whole
from harness.errors import NewerRecordError, ResultsError, reason_of
from harness.storage.entry import IndexEntry
from harness.storage.evidence import EvidenceFile, read_evidence
from harness.storage.index import Index
from harness.storage.json_codec import decode, decode_text, finite_json
from harness.storage.pack import PACK, Pack, pack_of, read_attempt_file
from harness.storage.seal import EVIDENCE, LOG, MAX_BYTES, RECORD, FileSeal, Seal, check_seal, file_seal, read_sealed

A_NAME = "expected letters, digits, dots, dashes and underscores"
A_RUN_ID = "expected 16 hexadecimal digits"
ATTEMPT = re.compile(r"[1-9][0-9]{0,17}")
"""The folder of an attempt."""
MAX_FOLDER_DEPTH = 32
"""Levels of folders below a results folder that are searched for records."""

MAX_REASON = 1000
"""Characters of the reason why an attempt is damaged."""


@dataclass(frozen=True)
class Attempt:
    """The folder of an attempt: its record and seal (None in old ones), or what is damaged, or both for a log."""

    folder: Path
    record: RunRecord | None = None
    seal: Seal | None = None
    damage: Damaged | None = None
    file: FileSeal | None = None
    """Its ``record.json``, as it was read."""


@dataclass(frozen=True)
class Contents:
    """The records of a results folder, oldest first, and the attempts that are damaged."""

    records: Sequence[RunRecord]
    damaged: tuple[Damaged, ...] = ()
    entries: Sequence[IndexEntry] | None = field(default=None, compare=False, repr=False)
    """The records as their index has them, which is faster than the records where it suffices; None without one."""

    @property
    def seals(self) -> tuple[str | None, ...]:
        """The hash of each record; none if no index knows them."""
        return () if self.entries is None else tuple(each.seal for each in self.entries)


def read_results(path: Path) -> Contents:
    """The records in a results folder. Raises ResultsError if there is no such folder, or none can be read in it."""
    if not path.exists():
        raise ResultsError(f"{shown(path)}: no such folder")
    if not path.is_dir():
        raise ResultsError(f"{shown(path)}: is a file; name a results folder written by 'qharness run'")
    return refuse_empty(read_contents(path, path), str(path))


def refuse_empty(found: Contents, name: str) -> Contents:
    """The contents of the results folder with this name. Raises ResultsError if no record in it can be read."""
    if not found.records:
        if found.damaged:
            raise ResultsError(f"{found.damaged[0].sentence}; 'qharness verify {shown(name)}' lists all damage")
        raise ResultsError(f"{shown(name)}: contains no records of 'qharness run'")
    return found


def read_records(path: Path) -> tuple[RunRecord, ...]:
    """All records in a results folder. Raises ResultsError if one of them cannot be read, or there is none."""
    return all_records(read_results(path))


def all_records(found: Contents) -> tuple[RunRecord, ...]:
    """The records among what was read. Raises ResultsError if one of them could not be read."""
    missing = next((each for each in found.damaged if not each.log_only), None)
    if missing is not None:
        raise ResultsError(missing.sentence)
    return tuple(found.records)


def read_contents(folder: Path, root: Path) -> Contents:
    """The records and the damage below ``folder``, which is ``root`` or in it; empty if there is no such folder.

    Raises NewerRecordError for a record of a newer harness.
    """
    with uncollected():
        return _read_contents(folder, root)


def _read_contents(folder: Path, root: Path) -> Contents:
    indexes = _indexes(folder)
    found: dict[tuple[str, ...], Attempt | IndexEntry] = {}
    misplaced: list[Path] = []

    @cache
    def is_placed(parent: Path, recipe: str) -> bool:
        return parent in (root, root / recipe)

    def is_known(parent: Path, run: str) -> bool:
        index = indexes.get(parent)
        attempts = None if index is None else index.attempts(run)
        if attempts is None:
            return False
        for name, known in attempts.items():
            if is_placed(parent, known.recipe):
                found[*parent.parts, run, name] = known
            else:
                misplaced.append(parent / run / name)
        return True

    walked = list(attempt_folders(folder, is_known))
    for each in (*misplaced, *walked):
        if each.parts not in found:  # one that was packed meanwhile is listed and walked
            found[each.parts] = _entry(each, root, indexes.get(each.parent.parent))
    for index in indexes.values():
        index.close()
    return _contents([found[each] for each in sorted(found)])


def _indexes(folder: Path) -> dict[Path, Index]:
    """The indexes of the recipes' folders that are in a folder, or that it is."""
    try:
        within = [folder, *(Path(each.path) for each in os.scandir(folder) if each.is_dir(follow_symlinks=False))]
    except OSError:
        return {}
    found = {each: Index.of(each) for each in within if each == folder or not each.name.startswith(".")}
    return {each: index for each, index in found.items() if index is not None}


def _entry(folder: Path, root: Path, index: Index | None) -> Attempt | IndexEntry:
    """An attempt from an index, or read and added to it; only whole and sealed ones are in an index."""
    key = f"{folder.parent.name}/{folder.name}"
    known = None if index is None else index.entry(key)
    if known is not None and folder.parent.parent in (root, root / known.recipe):
        return known
    attempt = read_attempt(folder, root)
    if index is None or attempt.record is None or attempt.seal is None or attempt.file is None or attempt.damage:
        return attempt
    return index.add(key, attempt.record, attempt.seal.sha256, {RECORD: attempt.file, **attempt.seal.files})


def _contents(found: Sequence[Attempt | IndexEntry]) -> Contents:
    """What was found, in the order of the folders."""
    damaged = tuple(each.damage for each in found if isinstance(each, Attempt) and each.damage)
    kept = sorted((each for each in found if isinstance(each, IndexEntry) or each.record), key=_order)
    if not any(isinstance(each, IndexEntry) for each in kept):
        return Contents(tuple(each.record for each in kept if each.record), damaged)
    entries = [each for each in kept if isinstance(each, IndexEntry)]
    records = _Records(kept)
    return Contents(LazyColumn(len(kept), lambda: records), damaged, entries if len(entries) == len(kept) else None)


class _Records(Sequence[RunRecord]):
    """The records of attempts that have one. That of an entry is built when it is used, and kept."""

    def __init__(self, found: Sequence[Attempt | IndexEntry]) -> None:
        self._found = found

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, index: int) -> RunRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RunRecord]: ...
    def __getitem__(self, index: int | slice) -> RunRecord | Sequence[RunRecord]:
        if isinstance(index, slice):
            with uncollected():
                return tuple(each.record for each in self._found[index] if each.record)
        record = self._found[index].record
        assert record is not None
        return record


def _order(found: Attempt | IndexEntry) -> tuple[str, int]:
    if isinstance(found, IndexEntry):
        return found.order
    assert found.record is not None
    return found.record.started_at, found.record.attempt


def attempt_folders(root: Path, skip: Callable[[Path, str], bool] = lambda parent, name: False) -> Iterator[Path]:
    """The folders below ``root`` that hold a record, those of attempts that lost theirs, and those that are packed.

    A damaged pack is among them. A hidden folder holds an interrupted write, what was set aside, or something
    unrelated; the caller may know others to ``skip``. Raises ResultsError for a folder that cannot be listed.
    """
    given: set[str] = set()
    recipes: list[Path] = []
    for name, folders, files in os.walk(root, onerror=_refuse_unlisted):
        here = Path(name)
        depth = len(here.parts) - len(root.parts)
        pack = None
        if PACK in files or any(map(RUN_ID.fullmatch, folders)):
            pack = pack_of(here)  # before the folders are listed: what is unpacked meanwhile is in one of both
            recipes.append(here)
            _, folders[:], files = next(os.walk(here, onerror=_refuse_unlisted), (name, [], []))
        folders[:] = sorted(each for each in folders if not each.startswith(".")) if depth < MAX_FOLDER_DEPTH else []
        runs = set(folders)
        folders[:] = [each for each in folders if not skip(here, each)]
        if RECORD in files or RECORD in folders or (ATTEMPT.fullmatch(here.name) and RUN_ID.fullmatch(_parent(here))):
            folders[:] = [each for each in folders if each != RECORD]
            if str(here) not in given:  # it was unpacked meanwhile
                given.add(str(here))
                yield here
        if pack is not None:
            yield from _packed(pack, given, runs)
            if pack.faults:
                yield pack.path
    for here in recipes:
        if (pack := pack_of(here)) is not None:  # folders may have been deleted meanwhile, since they are packed
            yield from _packed(pack, given, {key.partition("/")[0] for key in pack.attempts})


def _packed(pack: Pack, given: set[str], walked: Set[str]) -> list[Path]:
    """The attempts in a pack that were not ``given`` before, and have no folder in a run's that is ``walked`` later."""
    names = {str(pack.path.parent / key): key for key in sorted(pack.attempts)}
    found = [
        name
        for name, key in names.items()
        if name not in given and not (key.partition("/")[0] in walked and os.path.lexists(name))
    ]
    given.update(found)
    return list(map(Path, found))


def read_attempt(folder: Path, root: Path) -> Attempt:
    """The attempt in a folder below ``root``, which may be in a pack; of a damaged pack, its damage.

    Raises NewerRecordError if a newer harness wrote it.
    """
    if folder.name == PACK:
        pack = pack_of(folder.parent)
        return Attempt(folder, damage=Damaged(folder, "; ".join(pack.faults) if pack else "no such file"))
    try:
        content = read_attempt_file(folder / RECORD, MAX_BYTES[RECORD], ResultsError)
        raw, text = _raw(content)
        seal = check_seal(raw, RECORD)
        upgraded = upgrade(raw, RECORD)
        current = upgraded is raw  # as nearly all are: then it need not be written as JSON again
        record = decode_text(RunRecord, text, RECORD) if current else decode(RunRecord, upgraded, RECORD)
        _refuse_misplaced(record, raw, folder, root)
        record = _with_evidence(record, folder, seal)
        for measured in record.outcome.measurements:
            if fault := fault_of(measured):
                raise ResultsError(f"{RECORD}: {fault}")
    except NewerRecordError as error:
        raise NewerRecordError(f"{shown(folder)}: {error}") from None
    except ResultsError as error:
        return Attempt(folder, damage=Damaged(folder, _reason(error, folder)))
    try:
        if seal is not None:
            read_sealed(folder / LOG, seal)
    except ResultsError as error:
        return Attempt(folder, record, seal, Damaged(folder, _reason(error, folder), log_only=True))
    return Attempt(folder, record, seal, file=file_seal(content))


def read_raw(folder: Path) -> dict[str, Any]:
    """The JSON of an attempt's record, unchecked. Raises ResultsError if there is none."""
    return _raw(read_attempt_file(folder / RECORD, MAX_BYTES[RECORD], ResultsError))[0]


def _raw(content: bytes) -> tuple[dict[str, Any], str]:
    """A record's JSON, and the same as text without a number that is not finite."""
    raw = parse_json(content, RECORD, ResultsError)
    if not isinstance(raw, dict):
        raise ResultsError(f"{RECORD}: not a record")
    return raw, finite_json(raw, RECORD)


def _with_evidence(record: RunRecord, folder: Path, seal: Seal | None) -> RunRecord:
    """The record with the values of its evidence, which is read once: what is parsed is what was hashed."""
    measurements = record.outcome.measurements
    content = None if seal is None else read_sealed(folder / EVIDENCE, seal)
    if all(m.values for m in measurements):
        return record
    if content is None:
        content = read_attempt_file(folder / EVIDENCE, MAX_BYTES[EVIDENCE], ResultsError)
    sealed = (seal and seal.files.get(EVIDENCE)) or file_seal(content)
    filled = read_evidence(content, EVIDENCE, measurements, EvidenceFile((folder / EVIDENCE).absolute(), sealed))
    return replace(record, outcome=replace(record.outcome, measurements=filled))


def _refuse_misplaced(record: RunRecord, raw: dict[str, Any], folder: Path, root: Path) -> None:
    """Raises ResultsError if a record does not match its folders: recipe, run id and attempt.

    If the recipe's folder is ``root`` itself, which the user named, any name is allowed. The run id must match the
    spec, except in early records of schema version 1, which were named before some of its fields existed.
    """
    spec = record.spec
    run_id, attempt = ("", "", *Path(os.path.abspath(folder)).parts)[-2:]  # noqa: PTH100 - not resolved
    below = folder.relative_to(root).parts
    recipe = below[-3] if len(below) >= 3 else spec.recipe
    faults = []
    if not NAME.fullmatch(spec.recipe):
        faults.append(f"spec.recipe is {quoted(spec.recipe)}, which cannot name a recipe: {A_NAME}")
    elif spec.recipe != recipe:
        faults.append(f"spec.recipe is {quoted(spec.recipe)}, but its folder is {recipe!r}")
    named_by_all = raw["schema_version"] != 1 or is_whole(raw["spec"])
    if not RUN_ID.fullmatch(run_id):
        faults.append(f"its folder {quoted(run_id)} is not a run id: {A_RUN_ID}")
    elif named_by_all and spec.run_id != run_id:
        faults.append(f"its run id is {spec.run_id}, but its folder is {run_id!r}")
    if record.attempt < 1 or str(record.attempt) != attempt:
        faults.append(f"attempt is {quoted(record.attempt)}, but its folder is {quoted(attempt)}")
    if faults:
        raise ResultsError(
            f"{RECORD}: its folder does not match its content (expected RECIPE/RUN ID/ATTEMPT/{RECORD}): "
            f"{'; '.join(faults)}. Restore its original folder"
        )


def _reason(error: ResultsError, folder: Path) -> str:
    """The message in one line, without the folder, which ``Damaged`` names itself. It may quote what the file holds."""
    text = str(error).removeprefix(f"{shown(folder)}/")
    return "".join(letter if letter.isprintable() else " " for letter in text[:MAX_REASON])


def _parent(folder: Path) -> str:
    return Path(os.path.abspath(folder)).parent.name  # noqa: PTH100 - not resolved


def _refuse_unlisted(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise ResultsError(f"{shown(Path(error.filename))}: cannot list the folder ({reason_of(error)})")
