"""Packs: many attempts of a recipe in one file beside its runs, ``records.tar``, which any tar reads.

A member is a file of an attempt, ``<run id>/<attempt>/<file>``, with the bytes that it had. Members are only added; if
a file is there twice, the last one counts. An attempt that also has a folder is read from its folder. So an
interrupted packing loses nothing: a folder is deleted only when its files are in the pack, durable and read back, and
what a cut last member held still has its folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tarfile import USTAR_FORMAT, TarInfo

from harness.core.foreign import read_file, shown
from harness.core.owner import current_owner
from harness.errors import ResultsError, UsageError, reason_of
from harness.storage.disk import Disk

PACK = "records.tar"
BLOCK = 512
MAX_MEMBER_BYTES = 128 * 2**20
"""No file of a record is larger."""
MAX_GAP_BYTES = 2 * MAX_MEMBER_BYTES
"""After damage of more bytes in all, no further member is sought."""
TRIES = 3
"""How often a file is read that was packed, unpacked or moved within its pack meanwhile."""
MAX_ATTEMPTS = 1_000_000
MODE = 0o644
_MEMBER = re.compile(rb"([0-9a-f]{16}/[1-9][0-9]{0,17})/(record\.json|evidence\.parquet|log\.txt)")
_USTAR = b"ustar\x0000"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Member:
    """Where the content of a file is in a pack."""

    begin: int
    bytes: int


@dataclass(frozen=True)
class Pack:
    """``end`` is where its last whole member ends, or where one that is cut begins.

    ``damage`` is what is wrong, and ``gaps`` are the parts of the file that this leaves unread. ``cut`` is the attempt
    of a last member that is not whole, as an interrupted packing leaves it.
    """

    path: Path
    stamp: tuple[int, ...]
    attempts: Mapping[str, Mapping[str, Member]] = field(default_factory=dict)
    damage: Sequence[str] = ()
    gaps: Sequence[Member] = ()
    cut: str | None = None
    end: int = 0

    @property
    def faults(self) -> tuple[str, ...]:
        """What cannot be read. The folder of an attempt whose packing was interrupted is still there."""
        return (*self.damage, *([f"it ends within {self.cut}"] if self._lacks_folder else []))

    @property
    def unread(self) -> tuple[Member, ...]:
        """The parts of the file that ``faults`` are about."""
        rest = Member(self.end, self.stamp[1] - self.end)
        return (*self.gaps, *([rest] if self._lacks_folder else []))

    @property
    def _lacks_folder(self) -> bool:
        return self.cut is not None and not os.path.lexists(self.path.parent / self.cut)

    def read(self, member: Member) -> bytes:
        """Raises OSError if the file cannot be read; of a file that was cut, less comes back."""
        descriptor = os.open(self.path, _READ)
        try:
            return os.pread(descriptor, member.bytes, member.begin)
        finally:
            os.close(descriptor)


def pack_of(recipe: Path) -> Pack | None:
    """The pack in the folder of a recipe; None if there is none, or if it is no regular file."""
    path = recipe / PACK
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return _listed(path, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def packed(folder: Path) -> tuple[Pack, Mapping[str, Member]] | None:
    """The pack that an attempt is in, and its files there; None if it has a folder, or is in no pack."""
    return None if os.path.lexists(folder) else held(folder)


def held(folder: Path) -> tuple[Pack, Mapping[str, Member]] | None:
    """The pack that has an attempt, and its files there, also if they do not count because it has a folder too."""
    pack = pack_of(folder.parent.parent)
    members = None if pack is None else pack.attempts.get(f"{folder.parent.name}/{folder.name}")
    return None if pack is None or members is None else (pack, members)


def names_in_pack(folder: Path) -> set[str]:
    """What a pack has directly in a folder: the attempts of a run, or the files of an attempt."""
    found, pack = packed(folder), pack_of(folder.parent)
    inside = [] if pack is None else [key.split("/") for key in pack.attempts]
    return {*(() if found is None else found[1]), *(number for run, number in inside if run == folder.name)}


def file_names(folder: Path) -> set[str]:
    """The names of all that an attempt has, wherever it is kept. Raises OSError if it cannot be listed."""
    found = packed(folder)
    return {each.name for each in folder.iterdir()} if found is None else set(found[1])


def read_attempt_file(path: Path, limit_bytes: int, error: type[UsageError]) -> bytes:
    """A file of an attempt, from its folder or its pack. Raises ``error`` as ``read_file`` does."""
    for left in reversed(range(TRIES)):
        found = packed(path.parent)
        if found is None or path.name not in found[1]:
            try:
                return read_file(path, limit_bytes, error)
            except error:
                if not left or packed(path.parent) is None:
                    raise
                continue  # it was packed meanwhile
        pack, member = found[0], found[1][path.name]
        if member.bytes > limit_bytes:
            raise error(f"{shown(path)}: larger than {limit_bytes} bytes, the most that such a file may have")
        try:
            content = pack.read(member)
        except FileNotFoundError:
            if left:
                continue  # it was unpacked meanwhile
            raise error(f"{shown(pack.path)}: cannot read the file (it is gone)") from None
        except OSError as fault:
            raise error(f"{shown(pack.path)}: cannot read the file ({reason_of(fault)})") from None
        now = pack_of(pack.path.parent)
        if not left or (now is not None and now.stamp == pack.stamp):
            return content
    raise AssertionError("the last try returns or raises")


def has_attempt_file(path: Path) -> bool:
    found = packed(path.parent)
    return os.path.lexists(path) if found is None else path.name in found[1]


def add(recipe: Path, attempts: Mapping[str, Mapping[str, bytes]], disk: Disk) -> None:
    """Adds attempts, by their folders in the recipe's, to its pack, and makes them durable.

    Raises OSError if that fails, and ResultsError if what is to be the pack is no regular file.
    """
    path = recipe / PACK
    pack = pack_of(recipe)
    if pack is None and os.path.lexists(path):
        raise ResultsError(f"{shown(path)}: not a regular file; nothing was packed")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "r+b") as file:
        end = 0 if pack is None else pack.end
        file.truncate(end)  # the rest of an interrupted one, whose folders are there
        file.seek(end)
        for key, files in attempts.items():
            for name, content in files.items():
                file.write(_member(f"{key}/{name}", content))
    disk.sync(path)
    disk.sync(recipe)


def without(recipe: Path, key: str, disk: Disk) -> None:
    """Writes the pack of a recipe anew without an attempt; without any, it is deleted. What is damaged in it stays.

    Raises OSError if that fails, and ResultsError if more is damaged than a pack is searched for.
    """
    pack = pack_of(recipe)
    if pack is None:
        return
    unread = pack.unread
    if sum(gap.bytes for gap in unread) > MAX_GAP_BYTES:
        raise ResultsError(f"{shown(pack.path)}: {'; '.join(pack.faults)}; 'qharness store unpack' saves what is whole")
    kept = {each: members for each, members in pack.attempts.items() if each != key}
    if not kept and not unread:
        disk.remove(pack.path)
        return
    part = recipe / f".{PACK}.{current_owner()}.part"
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
        for each, members in kept.items():
            for name, member in members.items():
                file.write(_member(f"{each}/{name}", pack.read(member)))
        for gap in unread:
            file.write(pack.read(gap))
    disk.sync(part)
    disk.rename(part, pack.path)


def _member(name: str, content: bytes) -> bytes:
    header = TarInfo(name)
    header.size, header.mode = len(content), MODE
    return header.tobuf(USTAR_FORMAT) + content + b"\0" * (-len(content) % BLOCK)


@lru_cache(4)
def _listed(path: Path, stamp: tuple[int, ...]) -> Pack:
    """What a pack with this stamp holds. Of what is damaged, the next whole member is sought."""
    attempts: dict[str, dict[str, Member]] = {}
    damage: list[str] = []
    gaps: list[Member] = []
    cut = None
    end = place = skipped = 0
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        return Pack(path, stamp, {}, (f"cannot be read ({reason_of(error)})",), (Member(0, stamp[1]),))
    size = stamp[1]
    try:
        while place < size:
            if len(attempts) > MAX_ATTEMPTS:
                damage.append(f"holds more than {MAX_ATTEMPTS} attempts")
                gaps.append(Member(place, size - place))
                break
            found = _header(os.pread(descriptor, BLOCK, place))
            if found is None:
                begin, limit = place, min(size, place + MAX_GAP_BYTES - skipped)
                place = _next_header(descriptor, place + BLOCK, limit)
                if place == limit < size:
                    damage.append(f"nothing from {begin} on is part of a pack")
                    gaps.append(Member(begin, size - begin))
                    break
                if place < size or not _is_blank(descriptor, begin, place):
                    damage.append(f"{place - begin} bytes from {begin} on are no part of a pack")
                    gaps.append(Member(begin, place - begin))
                skipped += place - begin
                continue
            key, name, length = found
            begin, place = place + BLOCK, place + BLOCK + length + -length % BLOCK
            if place > size:
                cut, end = key, begin - BLOCK
                break
            attempts.setdefault(key, {})[name] = Member(begin, length)
            end = place
    finally:
        os.close(descriptor)
    return Pack(path, stamp, attempts, tuple(damage), tuple(gaps), cut, end)


def _header(block: bytes) -> tuple[str, str, int] | None:
    """Attempt, file and bytes of a member, from its header; None if that is damaged, or not one that is written."""
    if len(block) < BLOCK or block[257:265] != _USTAR or block[156:157] != b"0":
        return None
    member = _MEMBER.fullmatch(block[:100].rstrip(b"\0"))
    try:
        size, checksum = int(block[124:136].rstrip(b"\0 "), 8), int(block[148:156].rstrip(b"\0 "), 8)
    except ValueError:
        return None
    if (
        member is None
        or not 0 <= size <= MAX_MEMBER_BYTES
        or sum(block) - sum(block[148:156]) + 8 * ord(" ") != checksum
    ):
        return None
    return member[1].decode(), member[2].decode(), size


def _next_header(descriptor: int, place: int, size: int) -> int:
    while place < size and _header(os.pread(descriptor, BLOCK, place)) is None:
        place += BLOCK
    return min(place, size)


def _is_blank(descriptor: int, begin: int, end: int) -> bool:
    """Whether these bytes are zero, as at the end of a tar."""
    return not any(any(os.pread(descriptor, min(BLOCK, end - place), place)) for place in range(begin, end, BLOCK))
