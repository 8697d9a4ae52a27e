"""Where the files of a results folder are, and what may be done there.

``Store`` knows what a record is, and which files make it; a place knows how files are listed, read, written and
locked. Names are relative to the results folder, with slashes; ``""`` is the folder itself.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.core.foreign import shown
from harness.core.owner import current_owner
from harness.errors import ResultsError, reason_of
from harness.storage.disk import Disk
from harness.storage.pack import Member, Pack, held, names_in_pack, packed, read_attempt_file, without


class StorePlace(Protocol):
    """A results folder, wherever it is.

    What a method changed is durable when it returns. It raises OSError if that failed, and ResultsError for what must
    not be written at all, such as through a link that leaves the folder.
    """

    @property
    def title(self) -> str:
        """What messages call the folder: a path or a URL."""
        ...

    def at(self, name: str) -> str:
        """What messages call a file or folder in it."""
        ...

    def local(self, folder: str = "") -> Path:
        """The path on this machine where what the folder holds now can be read; nothing is there if it is empty."""
        ...

    def names(self, folder: str) -> tuple[str, ...]:
        """The names of all that is directly in a folder, in no order; none if there is no such folder."""
        ...

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The content of a file. Raises ResultsError if there is none, or it has more than ``limit_bytes``."""
        ...

    def add(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Creates a folder with files, which appears whole or not at all.

        Raises FileExistsError, or OSError with ENOTEMPTY, if the folder is there already, whoever made it: what is
        there stays.
        """
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Creates or replaces a file: readers see the old content or the new one."""
        ...

    def move(self, source: str, target: str) -> None:
        """Moves a file, or a folder with all that is in it, to a name that nothing has."""
        ...

    def remove(self, name: str) -> None:
        """Deletes a file, or a folder with all that is in it; what does not exist is left alone."""
        ...

    def locked(self, folder: str) -> AbstractContextManager[None]:
        """Held while a sweep writes into a folder, which is made if need be.

        Raises ResultsError if another sweep holds it, or if nothing can be written there: that is better known before
        a run than after it.
        """
        ...


@dataclass(frozen=True)
class LocalPlace:
    """A folder on this machine's disks, or on a file system that is mounted here."""

    root: Path
    disk: Disk = field(default_factory=Disk, compare=False)

    @property
    def title(self) -> str:
        return str(self.root)

    def at(self, name: str) -> str:
        return str(self.root / name)

    def local(self, folder: str = "") -> Path:
        return self.root / folder

    def names(self, folder: str) -> tuple[str, ...]:
        path = self.root / folder
        held = names_in_pack(path)
        with suppress(FileNotFoundError, NotADirectoryError):
            held |= {each.name for each in path.iterdir()}
        return tuple(held)

    def read(self, name: str, limit_bytes: int) -> bytes:
        return read_attempt_file(self.root / name, limit_bytes, ResultsError)

    def add(self, folder: str, files: Mapping[str, bytes]) -> None:
        self._refuse_packed(self.root / folder)
        with self.filling(folder, files) as part:
            self.disk.rename(part, self.root / folder)

    @contextmanager
    def filling(self, folder: str, files: Mapping[str, bytes]) -> Iterator[Path]:
        """A hidden folder with files, beside ``folder``, to which the caller renames it; OSError removes it."""
        final = self.root / folder
        part = self.own(final.parent) / f".{final.name}.{current_owner()}.part"
        try:
            self.disk.remove(part)
            self.disk.make_folder(part)
            for name, each in files.items():
                self.disk.write(part / name, each)
            self.disk.sync(part)
            yield part
        except OSError:
            shutil.rmtree(part, ignore_errors=True)  # on a full disk its bytes are wanted
            raise

    def replace(self, name: str, content: bytes) -> None:
        path = self.root / name
        self.unpack(path.parent)
        if (recipe := path.parent.parent.parent).is_relative_to(self.root) and held(path.parent) is not None:
            without(recipe, f"{path.parent.parent.name}/{path.parent.name}", self.disk)  # it must not count again
        self.own(path.parent)
        self.disk.write_whole(path, content)

    def move(self, source: str, target: str) -> None:
        old, new = self.root / source, self.root / target
        self.unpack(old)
        self.own(new.parent)
        self.own(old.parent)
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
        self._refuse_packed(new)
        self.disk.make_folder(new.parent)
        self.disk.rename(old, new)

    def unpack(self, folder: Path) -> None:
        """Gives an attempt in a pack its folder back, from which it is read and changed then. Others are left alone."""
        found = packed(folder)
        if found is None:
            return
        self.copy_from_pack(folder, *found)
        without(folder.parent.parent, f"{folder.parent.name}/{folder.name}", self.disk)

    def copy_from_pack(self, folder: Path, pack: Pack, members: Mapping[str, Member]) -> None:
        """Makes the folder of an attempt, which the pack keeps too."""
        files = {name: pack.read(member) for name, member in members.items()}
        with self.filling(folder.relative_to(self.root).as_posix(), files) as part:
            self.disk.rename(part, folder)

    def _refuse_packed(self, folder: Path) -> None:
        """Raises FileExistsError for an attempt in a pack, which a folder with its name would hide."""
        if packed(folder) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))

    def remove(self, name: str) -> None:
        self.own((self.root / name).parent)
        self.disk.remove(self.root / name)

    @contextmanager
    def locked(self, folder: str) -> Iterator[None]:
        from filelock import FileLock, Timeout

        path = self.root / folder
        self.own(path / ".lock")
        lock = FileLock(path / ".lock", timeout=0)
        try:
            self.disk.make_folder(path)
            lock.acquire()
        except Timeout:
            raise ResultsError(
                f"{path}: another 'qharness run' is writing here; wait for it, or use --results"
            ) from None
        except OSError as error:
            raise ResultsError(f"{path}: cannot create the results folder: {reason_of(error)}") from None
        try:
            self._refuse_unwritable(path)
            yield
        finally:
            lock.release()

    def _refuse_unwritable(self, folder: Path) -> None:
        probe = folder / ".writable"
        try:
            self.disk.write_whole(probe, b"written when a sweep starts, to see whether the disk takes it\n")
            self.disk.remove(probe)
        except OSError as error:
            raise ResultsError(f"{folder}: cannot write the results: {reason_of(error)}") from None

    def own(self, path: Path) -> Path:
        """The path, if writing there stays in this folder. Raises ResultsError if a link leads elsewhere.

        The folder itself may be a link, since the user named it; what is in it may have come from somebody else.
        """
        root = self.root.resolve()
        for each in (path, *path.parents)[: len(path.relative_to(self.root).parts)]:
            if each.is_symlink() and not each.resolve().is_relative_to(root):
                raise ResultsError(
                    f"{shown(each)}: is a link to outside of the results folder, and nothing is written through it; "
                    "put a folder in its place, or use --results"
                )
        return path
