"""The index of a recipe's results: what was read of its attempts, so that they need not be read again.

One hidden file beside the runs, to which segments are added. An attempt is taken from it if its folder and files have
the inodes, sizes and times that they had when it was read; if one of them changed so shortly before it was read that
its time may hide a later change, its files are hashed. All else is read anew. So an index that is missing, damaged, out
of date or copied from elsewhere costs time, and changes no answer: its first bytes name the folder that it was made in,
and the code that made it. ``qharness verify`` does not use it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from harness.core.identity import RUN_ID
from harness.core.owner import current_owner
from harness.core.record import RunRecord
from harness.errors import ResultsError
from harness.storage.entry import DamagedIndexError, IndexEntry, Segment, Stamps
from harness.storage.pack import PACK, file_names, packed, read_attempt_file
from harness.storage.seal import MAX_BYTES, RECORD, FileSeal, file_seal

INDEX = ".index"
"""The file, in the folder of a recipe."""
MIN_RUNS = 20
"""With fewer there is no index: reading them takes hardly longer than importing what reads them."""
SLACK_NS = 2_000_000_000
"""The coarsest clock of a file system is FAT's: two seconds."""
MAX_SEGMENTS = 32
"""With more, or if a tenth of the attempts are new, a reader writes the index anew."""
READERS = (
    *(f"core/{name}.py" for name in ("assembly", "capability", "collector", "column", "effort", "foreign", "identity")),
    *(f"core/{name}.py" for name in ("job", "json_values", "label", "model", "owner", "protocols", "record", "run")),
    *(f"core/{name}.py" for name in ("variant", "workload")),
    *(f"core/upgrade/{name}.py" for name in ("__init__", "labels", "specs")),
    "errors.py",
    *(f"storage/{name}.py" for name in ("disk", "entry", "evidence", "index", "json_codec", "pack", "parquet_bounds")),
    *(f"storage/{name}.py" for name in ("reading", "seal")),
)
"""The files whose code decides what is read of a record: this one, and all that reading imports. What they derive,
ids and labels for example, has no version of its own, so that an index lasts until one of them changes."""
_PACKED = 5
"""Numbers in the stamp of a pack: how many files the attempt has there, and those of a file."""
SEGMENT_ROWS = 5_000
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Neither a link is followed, nor a FIFO waited for."""
_HEAD = struct.Struct("<8s32sQQ")
"""A magic, the digest of the code, and device and inode of the folder."""


class Index:
    """The index of a recipe's folder while the attempts in it are read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._name = folder, str(folder)
        self._entries: dict[str, IndexEntry] = {}
        self._runs: dict[str, tuple[Sequence[int], Sequence[str], int]] = {}
        self._segments = 0
        self._current: dict[str, tuple[IndexEntry, Stamps]] = {}
        self._is_new: set[str] = set()
        self._covered: dict[str, Sequence[Any]] = {}
        self._part, self._new = _part_of(folder), Segment(folder.absolute())
        with suppress(OSError):  # a folder that cannot be written is read all the same
            self._new.began_ns = _clock_ns(self._part)
        self._load()

    @classmethod
    def of(cls, folder: Path) -> Index | None:
        """The index of a recipe's folder; None if the folder is a link, or has too few runs for one."""
        return cls(folder) if is_indexed(folder) else None

    def attempts(self, run: str) -> Mapping[str, IndexEntry] | None:
        """The attempts of a run by name, if its folder and theirs are as they were when they were listed."""
        stamp, names, began_ns = self._runs.get(run, (None, (), 0))
        try:
            if stamp is None or _is_recent([stamp], began_ns) or _stamp(os.lstat, f"{self._name}/{run}") != stamp:
                return None
        except OSError:  # it is gone
            return None
        found = {}
        for name in names:
            entry = self.entry(f"{run}/{name}")
            if entry is None:  # it may hold folders now
                return None
            found[name] = entry
        self._covered[run] = [stamp, names]
        return found

    def entry(self, key: str) -> IndexEntry | None:
        """The entry of an attempt whose files are what they were when it was read; None for any other."""
        if key in self._current:
            return self._current[key][0]
        found = self._entries.get(key)
        stamps = None if found is None else self._stamps(key, found.file_names)
        if found is None or stamps is None:
            return None
        is_packed_anew = stamps != found.stamps
        if is_packed_anew and len(stamps[0]) != _PACKED:
            return None
        if is_packed_anew or _is_recent(stamps, found.segment.began_ns):
            if not self._is_unchanged(key, found.files):
                return None
            if not _is_recent(stamps, self._new.began_ns):
                self._is_new.add(key)
        self._current[key] = found, stamps
        return found

    def add(self, key: str, record: RunRecord, seal: str, files: Mapping[str, FileSeal]) -> IndexEntry:
        """The entry of an attempt that was read; ``files`` are those that it was read from."""
        stamps = self._stamps(key, files)
        found = self._new.add(key, stamps or [], record, seal, files)
        if stamps is not None:
            self._is_new.add(key)
            self._current[key] = found, stamps
        return found

    def close(self) -> None:
        """Writes what is new, if this folder can be written. What others wrote meanwhile may be lost, and read anew."""
        try:
            if self._new.began_ns and self._is_new:
                whole = self._segments >= MAX_SEGMENTS or 10 * len(self._is_new) > len(self._current)
                keys = sorted(self._current) if whole or not self._segments else sorted(self._is_new)
                content = b"".join(
                    self._segment(keys[begin : begin + SEGMENT_ROWS]).written()
                    for begin in range(0, len(keys), SEGMENT_ROWS)
                )
                if whole or not self._segments:
                    _begin(self.folder, self._part, content)
                else:
                    _append(self.folder, content)
            self._part.unlink(missing_ok=True)
        except OSError:  # a full disk, say: the next reader tries again
            with suppress(OSError):
                self._part.unlink(missing_ok=True)

    def _segment(self, keys: Sequence[str]) -> Segment:
        made = Segment(self.folder, self._new.began_ns)
        for key in keys:
            made.copy(*self._current[key])
        for run in dict.fromkeys(key.partition("/")[0] for key in keys):
            listed = self._covered.get(run) or _listing(self.folder / run)
            if listed is not None:
                made.runs[run] = list(listed)
        return made

    def _load(self) -> None:
        try:
            with os.fdopen(os.open(self.folder / INDEX, _READ), "rb") as file:
                if file.read(_HEAD.size) != _head(self.folder):
                    return
                content = memoryview(file.read())
        except OSError:
            return
        folder = self.folder.absolute()
        try:
            while content:
                segment, size = Segment.read(folder, content)
                content = content[size:]
                self._entries |= {entry.key: entry for entry in segment.entries()}
                self._runs |= {run: (stamp, names, segment.began_ns) for run, (stamp, names) in segment.runs.items()}
                self._segments += 1
        except (ValueError, TypeError, RecursionError, DamagedIndexError):
            self._segments = 0  # what was read before the damage holds; nothing is added behind it

    def _stamps(self, key: str, names: Iterable[str]) -> Stamps | None:
        """The stamps of an attempt's folder and of files in it; None if one is not there."""
        folder = f"{self._name}/{key}"
        try:
            own = _stamp(os.lstat, folder)
        except OSError:
            return _packed_stamps(Path(folder), names)
        try:
            return [own, *[_stamp(os.stat, f"{folder}/{name}") for name in names]]
        except OSError:
            return None

    def _is_unchanged(self, key: str, files: Mapping[str, FileSeal]) -> bool:
        """Whether the files of an attempt have the hashes that they had."""
        folder = self.folder / key
        try:
            if file_names(folder) != files.keys():
                return False
            return all(
                file_seal(read_attempt_file(folder / name, MAX_BYTES[name], ResultsError)) == files[name]
                for name in files
            )
        except (OSError, ResultsError):
            return False


def _packed_stamps(folder: Path, names: Iterable[str]) -> Stamps | None:
    """The stamps of an attempt in a pack; None if it is in none."""
    found = packed(folder)
    if found is None:
        return None
    pack, members = found
    try:
        return [[len(members), *pack.stamp], *([members[name].begin, members[name].bytes, 0, 0] for name in names)]
    except KeyError:
        return None


def _begin(folder: Path, part: Path, content: bytes) -> None:
    """Writes an index by a rename, so that nothing is written through a link, and readers keep the file they read."""
    part.unlink(missing_ok=True)
    with part.open("xb") as file:
        file.write(_head(folder) + content)
    part.replace(folder / INDEX)


def is_indexed(folder: Path) -> bool:
    """Whether the folder of a recipe has an index, or enough runs for one. The target of a link has none."""
    return not folder.is_symlink() and (
        os.path.lexists(folder / INDEX) or os.path.lexists(folder / PACK) or _has_many(folder)
    )


def _append(folder: Path, content: bytes) -> None:
    """Adds segments to the index of a folder, which is begun anew if it is not of this folder and this code."""
    try:
        descriptor = os.open(folder / INDEX, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = None
    if descriptor is not None:
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            if file.read(_HEAD.size) == _head(folder):
                file.write(content)
                return
    _begin(folder, _part_of(folder), content)


def note(folder: Path, key: str, record: RunRecord, seal: str, files: Mapping[str, FileSeal]) -> None:
    """Adds an attempt to the index of its recipe's folder, right after it was written and read back."""
    with suppress(OSError):  # the record is kept all the same
        path = folder / key
        segment = Segment(folder, (path / RECORD).stat().st_mtime_ns)
        stamps = [_stamp(os.lstat, str(path)), *(_stamp(os.stat, str(path / name)) for name in files)]
        segment.add(key, stamps, record, seal, files)
        run = key.partition("/")[0]
        listed = _listing(folder / run)
        if listed is not None:
            segment.runs[run] = list(listed)
        _append(folder, segment.written())


def _listing(run: Path) -> Sequence[Any] | None:
    """The stamp of a run's folder, and its attempts; None if it holds anything else, or an attempt holds folders."""
    try:
        stamp = _stamp(os.lstat, str(run))
        names = []
        with os.scandir(run) as inside:
            for each in inside:
                if each.name.startswith(".") or not each.is_dir(follow_symlinks=False):
                    return None
                with os.scandir(each.path) as files:
                    if not all(file.is_file() for file in files):
                        return None
                names.append(each.name)
    except OSError:
        return None
    return [stamp, sorted(names)] if RUN_ID.fullmatch(run.name) and all(map(str.isdigit, names)) else None


def _stamp(look: Callable[[str], os.stat_result], path: str) -> list[int]:
    status = look(path)
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_recent(stamps: Sequence[Sequence[int]], began_ns: int) -> bool:
    """Whether one of them is so new that a change after ``began_ns`` might have left it the same."""
    latest_ns = began_ns - SLACK_NS
    return any(stamp[-1] >= latest_ns or stamp[-2] >= latest_ns for stamp in stamps)


def _has_many(folder: Path) -> bool:
    try:
        with os.scandir(folder) as inside:
            runs = (each for each in inside if each.is_dir())  # beside them are files, a lock for one
            return sum(1 for _ in islice(runs, MIN_RUNS)) >= MIN_RUNS
    except OSError:
        return False


def _clock_ns(part: Path) -> int:
    """The time by the clock of a file system, as that of a file which is written there now."""
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(b"\0")
        file.flush()
        return os.fstat(file.fileno()).st_mtime_ns


def _head(folder: Path) -> bytes:
    status = folder.stat()
    return _HEAD.pack(b"qh-index", _code(), status.st_dev, status.st_ino)


def _part_of(folder: Path) -> Path:
    return folder / f".{INDEX[1:]}.{current_owner()}.part"


@cache
def _code() -> bytes:
    """A digest of the code that reads records: another version may read something else in the same files."""
    digest = hashlib.sha256(sys.byteorder.encode())
    root = Path(__file__).parents[1]
    for name in READERS:
        digest.update((root / name).read_bytes())
    return digest.digest()
