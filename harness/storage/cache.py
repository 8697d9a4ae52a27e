"""The cache of prepared models, quantized artifacts and references, each named after the run that made it.

A folder appears complete, by one rename, with the outcome of its run in ``outcome.json``, which also holds the size and
hash of every file of the folder, and a digest of itself. Any folder may be deleted; the next run makes it again. So a
damaged one is never an error of a command: it is removed and made again.

Folders from before schema version 3 have no hashes. They are used, and ``faults`` says that they are not sealed.
"""

from __future__ import annotations

import errno
import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.core.foreign import parse_json, read_file
from harness.core.identity import RUN_ID
from harness.core.job import JOBS
from harness.core.json_values import ABSENT_AT_DEFAULT
from harness.core.owner import Owner, current_owner, owner_in, temporary_folder
from harness.core.record import Outcome
from harness.core.run import RunSpec
from harness.core.site import CONFIGURATIONS, EXPERT_TOKENS, MAX_SEALED_BYTES, REQUESTS, WINDOWS
from harness.core.upgrade import SCHEMA_VERSION, upgrade
from harness.errors import DamagedError, NewerRecordError, ResultsError, reason_of
from harness.storage.anonymizer import Anonymizer
from harness.storage.disk import Disk, is_left_over
from harness.storage.folder_seal import (
    SEAL,
    SealedFile,
    find_damage,
    has_valid_seal,
    read_sealed_json,
    seal_files,
    with_seal,
)
from harness.storage.json_codec import decode, encode
from harness.storage.shared_cache import SharedCache

OUTCOME = "outcome.json"
MAX_OUTCOME_BYTES = 64 * 2**20
"""The largest ``outcome.json`` that is read: about 400,000 files in a folder."""
LEFT_OVER_S = 24 * 3600.0
"""After this time without an outcome, files at a URL are not on their way any more."""
LAST_UNSEALED = 2
"""The last schema version whose folders may lack a seal."""


@dataclass(frozen=True)
class CacheFault:
    """Something in a cache that should not be there, or not be so."""

    path: Path
    kind: Literal["damaged", "newer", "debris", "not sealed"]
    reason: str


@dataclass(frozen=True)
class _Kept:
    """The content of ``outcome.json``; ``files`` is None in a folder that was never sealed.

    ``maker`` is the process that was still measuring the last of an artifact when it wrote this; else it is empty.
    """

    schema_version: int
    outcome: Outcome
    kind: str = ""
    run_id: str = ""
    files: tuple[SealedFile, ...] | None = None
    maker: str = field(default="", metadata=ABSENT_AT_DEFAULT)


@dataclass(frozen=True)
class Cache:
    """One folder per run_id under a root.

    What is not there may be ``shared``, at a URL: its outcome is known from there, ``damage`` with ``read_data``
    fetches it, and ``share`` sends what was made here. A store that cannot be reached costs time, and no run. Where
    runs execute on nodes with caches of their own, ``offer`` sends what a run needs, and ``pull`` fetches it there. The
    cache of the machine that plans is then ``for_nodes``: it fetches nothing itself.
    """

    root: Path
    disk: Disk = field(default_factory=Disk, compare=False, repr=False)
    shared: SharedCache | None = field(default=None, compare=False, repr=False)
    for_nodes: bool = False

    def folder(self, kind: str, run_id: str) -> Path:
        return self.root / kind / run_id

    def needed(self, spec: RunSpec, kind: str) -> Path:
        """The folder of the run of that kind that a spec needs, as ``verify`` left it.

        Raises DamagedError if it is missing.
        """
        folder = self.folder(kind, spec.needs[kind])
        if not (folder / OUTCOME).exists():
            raise DamagedError(f"{folder}: missing from the cache; run the recipe again")
        return folder

    def verify(self, spec: RunSpec) -> None:
        """Hashes every file of all artifacts that a spec needs.

        Raises DamagedError for the first that is missing or damaged, after removing it: the next sweep makes it again.
        """
        for kind, run_id in spec.needs.items():
            folder = self.folder(kind, run_id)
            if not folder.exists():
                raise DamagedError(f"{folder}: missing from the cache; run the recipe again")
            reason = self._damage(kind, run_id, read_data=True)
            if reason is not None:
                raise DamagedError(f"{reason}. {self._discard(folder)}")

    def outcome(self, spec: RunSpec) -> Outcome | None:
        """The outcome of the run that made the spec's folder; None if there is none, or it is seen to be damaged.

        Reads ``outcome.json``, and compares names and sizes of the files; ``damage`` says what is wrong. Raises OSError
        if it may be shared, and that cannot be read.
        """
        if not spec.job.cached:
            return None
        folder = self.folder(spec.kind, spec.run_id)
        try:
            if self.shared is not None and not folder.exists():
                there = _read_shared(self.shared, spec.kind, spec.run_id)
                return None if there is None else there[0].outcome
            kept = _read(folder, spec.kind, spec.run_id)
        except ResultsError:
            return None
        return None if _changed(folder, kept, read_data=False) else kept.outcome

    def maker(self, spec: RunSpec) -> Owner | None:
        """The other process that may still measure the last of the spec's artifact; None if none does.

        One of another machine cannot be seen to end: what it wrote is waited for no longer than its run had taken by
        then. At a URL there is no such artifact: it is sent when its run has ended.
        """
        folder = self.folder(spec.kind, spec.run_id)
        try:
            kept = _read(folder, spec.kind, spec.run_id)
            age_s = time.time() - (folder / OUTCOME).stat().st_mtime
        except (OSError, ResultsError):
            return None
        owner = owner_in(kept.maker)
        if owner is None or owner == current_owner():
            return None
        state = owner.state()
        if state == "unknown":
            took_s = sum(phase.wall_s for phase in kept.outcome.phases)
            return owner if self.shared is None and age_s < took_s else None
        return None if state == "dead" else owner

    def damage(self, spec: RunSpec, read_data: bool) -> str | None:
        """What is wrong with the spec's folder; None if nothing is, or there is none.

        With ``read_data`` a shared folder is fetched before, and what is wrong with it is found. If it is
        ``for_nodes``, names and sizes are compared; a store that cannot be reached then says nothing against it.
        Raises OSError if it cannot be fetched: the store cannot be reached, or the disk here takes no more.
        """
        if not spec.job.cached:
            return None
        if read_data and self.shared is not None and not self.folder(spec.kind, spec.run_id).exists():
            try:
                (self._compare if self.for_nodes else self._fetch)(self.shared, spec.kind, spec.run_id)
            except ResultsError as error:
                return str(error)
            except OSError as error:
                if not self.for_nodes:
                    at = self.shared.objects.at(f"{spec.kind}/{spec.run_id}")
                    raise OSError(error.errno, f"{at}: cannot be fetched: {reason_of(error)}") from None
            return None
        return self._damage(spec.kind, spec.run_id, read_data)

    def _compare(self, shared: SharedCache, kind: str, run_id: str) -> None:
        """Compares names and sizes of a shared folder's files. Raises as ``_fetch``."""
        with _deleting_damaged(shared, kind, run_id):
            there = _read_shared(shared, kind, run_id)
            if there is not None:
                kept, seal, _ = there
                listed = shared.objects.list(f"{kind}/{run_id}")
                if (reason := shared.difference(kind, run_id, seal, kept.files or (), listed)) is not None:
                    raise ResultsError(reason)

    def _fetch(self, shared: SharedCache, kind: str, run_id: str) -> bool:
        """Makes the folder here the shared one; returns whether there is one.

        Raises OSError; ResultsError for one that cannot be used. Deletes it there if it is damaged.
        """
        with _deleting_damaged(shared, kind, run_id):
            there = _read_shared(shared, kind, run_id)
            if there is None:
                return False
            kept, seal, content = there
            if self._holds(kind, run_id, content):
                return True
            with self._filling(kind, run_id, f"{current_owner()}-{secrets.token_hex(4)}") as part:
                shared.fetch(kind, run_id, seal, kept.files or (), part)
                self.disk.write(part / OUTCOME, content)
                if not self._holds(kind, run_id, content):  # no other sweep has fetched it meanwhile
                    self.disk.remove(self.folder(kind, run_id))  # it is another one, or damaged
                self._rename(kind, run_id, part)
        return True

    def _holds(self, kind: str, run_id: str, outcome: bytes) -> bool:
        """Whether the folder here is the one with this ``outcome.json``, and not seen to be damaged."""
        try:
            here = read_file(self.folder(kind, run_id) / OUTCOME, MAX_OUTCOME_BYTES, ResultsError)
        except ResultsError:
            return False
        return here == outcome and self._damage(kind, run_id, read_data=False) is None

    def pull(self, spec: RunSpec) -> None:
        """Makes each folder that a spec needs the one that is shared, which all nodes of a sweep then use.

        Raises OSError, and DamagedError for one that is missing or damaged where it is shared.
        """
        if self.shared is None:
            return
        for kind, run_id in spec.needs.items():
            try:
                found = self._fetch(self.shared, kind, run_id)
            except NewerRecordError as error:
                raise DamagedError(str(error)) from None
            except ResultsError as error:
                raise DamagedError(f"{error}; run the recipe again") from None
            if not found:
                at = self.shared.objects.at(f"{kind}/{run_id}")
                raise DamagedError(f"{at}: missing from the cache; run the recipe again")

    def offer(self, spec: RunSpec) -> None:
        """Sends what a spec needs and is only here to where it is shared. Raises as ``share`` does."""
        if self.shared is not None:
            for kind, run_id in spec.needs.items():
                self._send(self.shared, kind, run_id)

    def share(self, spec: RunSpec) -> None:
        """Sends the run's folder to where it is shared. Raises OSError, or ResultsError if it cannot be shared."""
        if self.shared is not None and spec.job.cached:
            self._send(self.shared, spec.kind, spec.run_id)

    def _send(self, shared: SharedCache, kind: str, run_id: str) -> None:
        folder = self.folder(kind, run_id)
        if not folder.exists():  # one that is suspect was not kept
            return
        kept = _read(folder, kind, run_id)
        if self._is_shared(shared, kind, run_id, kept.outcome):
            return
        if kept.files is None:
            raise ResultsError(f"{folder}: from an older version, which kept no checksums; delete it")
        content = read_file(folder / OUTCOME, MAX_OUTCOME_BYTES, ResultsError)
        seal = parse_json(content, OUTCOME, ResultsError)[SEAL]
        shared.send(kind, run_id, seal, kept.files, folder, (OUTCOME, content))

    def _damage(self, kind: str, run_id: str, read_data: bool) -> str | None:
        folder = self.folder(kind, run_id)
        if not folder.exists():
            return None
        try:
            return _changed(folder, _read(folder, kind, run_id), read_data)
        except ResultsError as error:
            return str(error)

    def _is_shared(self, shared: SharedCache, kind: str, run_id: str, here: Outcome) -> bool:
        """Whether another machine sent the folder before. Deletes what it sent if that is damaged.

        And if its run was interrupted, and the one ``here`` was not.

        Raises NewerRecordError.
        """
        try:
            there = _read_shared(shared, kind, run_id)
            if there is None or here.is_interrupted or not there[0].outcome.is_interrupted:
                return there is not None
        except NewerRecordError:
            raise
        except ResultsError:
            pass
        shared.remove(kind, run_id, OUTCOME)
        return False

    def remove(self, spec: RunSpec) -> bool:
        """Deletes a run's folder, also where it is shared, whoever made it; returns whether it was here.

        Raises OSError.
        """
        if self.shared is not None and spec.job.cached:
            self.shared.remove(spec.kind, spec.run_id, OUTCOME)
        return self.discard(spec)

    def discard(self, spec: RunSpec) -> bool:
        """Deletes a run's folder here alone; returns whether there was one. Raises OSError."""
        folder = self.folder(spec.kind, spec.run_id)
        if not spec.job.cached or not folder.exists():
            return False
        self.disk.remove(folder)
        return True

    def _discard(self, folder: Path) -> str:
        """Removes a damaged folder; returns what the user must know about that."""
        try:
            self.disk.remove(folder)
        except OSError as error:
            return f"It cannot be removed ({reason_of(error)}): delete {folder}, and run the recipe again"
        return f"{folder} was removed; run the recipe again to make it again"

    def part(self, spec: RunSpec, token: str) -> Path:
        """The folder that a worker fills; the token is unique to the worker."""
        return self._part(spec.kind, spec.run_id, token)

    def _part(self, kind: str, run_id: str, token: str) -> Path:
        return self.folder(kind, f".{run_id}.{token}.part")

    @contextmanager
    def filling(self, spec: RunSpec, token: str) -> Iterator[Path]:
        """A folder to fill, without an outcome yet; deleted if filling it fails."""
        with self._filling(spec.kind, spec.run_id, token) as part:
            yield part

    @contextmanager
    def _filling(self, kind: str, run_id: str, token: str) -> Iterator[Path]:
        part = self._part(kind, run_id, token)
        self.disk.make_folder(part)
        try:
            yield part
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def publish(self, spec: RunSpec, part: Path, outcome: Outcome) -> None:
        """Seals a filled folder, with its outcome, and renames it; a folder that was published meanwhile stays.

        Hashes every file, so its time belongs to no phase of the run.
        """
        self.disk.write(part / OUTCOME, self._sealed(spec, outcome, seal_files(part)))
        self._rename(spec.kind, spec.run_id, part)

    def amend(self, spec: RunSpec, outcome: Outcome) -> None:
        """Replaces the outcome of a published folder; its other files stay.

        Raises OSError, and ResultsError if there is no such folder.
        """
        folder = self.folder(spec.kind, spec.run_id)
        files = _read(folder, spec.kind, spec.run_id).files or ()
        part = self.part(spec, f"{current_owner()}-{secrets.token_hex(4)}")
        self.disk.write(part, self._sealed(spec, outcome, files))
        self.disk.rename(part, folder / OUTCOME)

    def _sealed(self, spec: RunSpec, outcome: Outcome, files: tuple[SealedFile, ...]) -> bytes:
        """The content of ``outcome.json``."""
        stored = Anonymizer.here(cache=self.root).outcome(outcome)
        maker = str(current_owner()) if outcome.is_interrupted else ""
        kept = _Kept(SCHEMA_VERSION, stored, spec.kind, spec.run_id, files, maker)
        return json.dumps(with_seal(json.loads(encode(kept).encode(errors="replace"))), allow_nan=False).encode()

    def _rename(self, kind: str, run_id: str, part: Path) -> None:
        """Gives a sealed folder its name, unless there is one that is whole."""
        final = self.folder(kind, run_id)
        while True:
            if self._damage(kind, run_id, read_data=False) is not None:
                self.disk.remove(final)
            try:
                self.disk.publish(part, final)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if final.exists() and self._damage(kind, run_id, read_data=False) is None:  # another sweep was quicker
                self.disk.remove(part)
                return

    def faults(self, read_data: bool) -> Iterator[CacheFault]:
        """Everything in the cache that is damaged, left over, not sealed or of a newer harness, by its path.

        Without ``read_data`` names, sizes and the digests of JSON files are checked, with it every byte.
        """
        for kind in sorted(kind for kind, job in JOBS.items() if job.cached):
            for folder in _entries(self.root / kind):
                if is_left_over(folder.name):
                    yield CacheFault(folder, "debris", f"{folder}: left by a run that did not end")
                elif RUN_ID.fullmatch(folder.name):
                    yield from self._faults_of(kind, folder, read_data)
        for file in (
            entry for each in (CONFIGURATIONS, WINDOWS, REQUESTS, EXPERT_TOKENS) for entry in _entries(self.root / each)
        ):
            if is_left_over(file.name):
                yield CacheFault(file, "debris", f"{file}: left by an interrupted write")
            elif file.suffix == ".json" and (reason := _unsealed(file)):
                yield CacheFault(file, "damaged", reason)

    def _faults_of(self, kind: str, folder: Path, read_data: bool) -> Iterator[CacheFault]:
        try:
            kept = _read(folder, kind, folder.name)
        except NewerRecordError as error:
            yield CacheFault(folder, "newer", str(error))
            return
        except ResultsError as error:
            yield CacheFault(folder, "damaged", str(error))
            return
        if kept.files is None:
            yield CacheFault(folder, "not sealed", f"{folder}: from an older version, which kept no checksums")
            return
        for reason in find_damage(folder, kept.files, read_data, besides=OUTCOME):
            yield CacheFault(folder, "damaged", reason)

    def repair(self, read_data: bool) -> Iterator[CacheFault]:
        """Deletes what is damaged or left over, and yields it; what is not sealed, or newer, stays.

        Raises OSError if something cannot be deleted.
        """
        for fault in list(self.faults(read_data)):
            if fault.kind in ("damaged", "debris"):
                self.disk.remove(fault.path)
                yield fault


@dataclass(frozen=True)
class SharedFault:
    """Objects of one run at the URL of a cache that should not be there; ``run`` is its kind and id."""

    run: str
    kind: Literal["damaged", "newer", "debris"]
    reason: str
    names: tuple[str, ...]


def shared_faults(shared: SharedCache, read_data: bool) -> Iterator[SharedFault | str]:
    """Every artifact at a URL, as its kind and id if it is whole, else as what is wrong. Raises OSError.

    Compares names and sizes with what the outcome seals; with ``read_data`` fetches and hashes every file. Files
    without an outcome are left over once they are a day old: before, another machine may be sending them.
    """
    kinds = sorted(kind for kind, job in JOBS.items() if job.cached)
    listed = {name: each for kind in kinds for name, each in shared.objects.list(kind).items()}
    now = shared.objects.now(f".time-{secrets.token_hex(4)}") if listed else None
    runs: dict[str, list[str]] = {}
    for name in listed:
        runs.setdefault("/".join(name.split("/")[:2]), []).append(name)
    for run, names in sorted(runs.items()):
        kind, _, run_id = run.partition("/")
        if not RUN_ID.fullmatch(run_id):
            continue
        others = tuple(names)
        try:
            there = _read_shared(shared, kind, run_id)
            if there is not None:
                kept, seal, _ = there
                files = kept.files or ()
                if (reason := shared.difference(kind, run_id, seal, files, listed)) is not None:
                    raise ResultsError(reason)
                if read_data:
                    with temporary_folder() as folder:
                        shared.fetch(kind, run_id, seal, files, folder)
                yield run
                others = tuple(shared.leftovers(kind, run_id, seal, OUTCOME, names))
        except NewerRecordError as error:
            yield SharedFault(run, "newer", str(error), ())
            continue
        except ResultsError as error:
            yield SharedFault(run, "damaged", str(error), others)
            continue
        written = [listed[name].modified for name in others]
        if others and all(now and each and (now - each).total_seconds() > LEFT_OVER_S for each in written):
            yield SharedFault(run, "debris", "left by a push that was interrupted", others)


def _read(folder: Path, kind: str, run_id: str) -> _Kept:
    """The content of a folder's ``outcome.json``. Raises ResultsError if it is not as it was written for this run."""
    path = str(folder / OUTCOME)
    return _parsed(read_file(folder / OUTCOME, MAX_OUTCOME_BYTES, ResultsError), path, kind, run_id)


@contextmanager
def _deleting_damaged(shared: SharedCache, kind: str, run_id: str) -> Iterator[None]:
    """Deletes an artifact where it is shared if it proves to be damaged; one of a newer harness stays."""
    try:
        yield
    except NewerRecordError:
        raise
    except ResultsError:
        with suppress(OSError):  # the next sweep finds it again
            shared.remove(kind, run_id, OUTCOME)
        raise


def _read_shared(shared: SharedCache, kind: str, run_id: str) -> tuple[_Kept, str, bytes] | None:
    """The content of a shared ``outcome.json``, its seal and its bytes; None if there is none.

    Raises ResultsError if it is not as it was written for this run; OSError.
    """
    content = shared.outcome(kind, run_id, OUTCOME, MAX_OUTCOME_BYTES)
    if content is None:
        return None
    name = shared.objects.at(f"{kind}/{run_id}/{OUTCOME}")
    kept = _parsed(content, name, kind, run_id)
    if kept.files is None:
        raise ResultsError(f"{name}: its seal is missing")
    return kept, parse_json(content, name, ResultsError)[SEAL], content


def _parsed(content: bytes, path: str, kind: str, run_id: str) -> _Kept:
    raw = parse_json(content, path, ResultsError)
    if not isinstance(raw, dict):
        raise ResultsError(f"{path}: not the outcome of a run")
    whole = raw if "schema_version" in raw else {"schema_version": 1, "outcome": raw}
    if SEAL in raw:
        if not has_valid_seal(raw):
            raise ResultsError(f"{path}: not what was written: it was edited, cut or damaged")
        if (raw.get("kind"), raw.get("run_id")) != (kind, run_id):
            raise ResultsError(f"{path}: belongs to another folder, {raw.get('kind')}/{raw.get('run_id')}")
    elif _version(whole) > LAST_UNSEALED or "files" in raw:
        raise ResultsError(f"{path}: its seal is missing")
    return decode(_Kept, upgrade(whole, path), path)


def _version(raw: dict[str, Any]) -> int:
    version = raw["schema_version"]
    return version if isinstance(version, int) else 0  # which ``upgrade`` refuses


def _changed(folder: Path, kept: _Kept, read_data: bool) -> str | None:
    """The first difference between a folder and its seal, if it has one."""
    if kept.files is None:
        return None
    return next(find_damage(folder, kept.files, read_data, besides=OUTCOME), None)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _unsealed(path: Path) -> str | None:
    """Why a JSON file is not what was sealed; None if it is."""
    try:
        read_sealed_json(path, MAX_SEALED_BYTES)
    except ResultsError as error:
        return str(error)
    return None
