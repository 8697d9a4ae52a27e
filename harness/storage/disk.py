"""The operations by which results reach a disk, so that they survive a crash of the machine.

A rename is atomic, but it may reach the disk before the content that it names. So everything is written in one order:
the content and its fsync, the rename, the fsync of the folder. ``Disk`` is the one place that changes a disk; a test
passes one that records the operations, or one that fails.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from harness.core.owner import current_owner, owner_in

_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR, errno.ENOSYS})
"""How file systems refuse the fsync of a folder (SMB, some FUSE and network ones): their renames are durable or not,
nothing more can be done."""
REMOVED = "removed"
"""The suffix of a folder that is being deleted: hidden, so that no reader sees a part of it."""


_FULL_WORDS = ("no space left on device", "disk quota exceeded", "storagefull")
"""How Linux, Python and Rust name it."""


TAKES_NOTHING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""How a disk refuses whatever is written to it: it is full, a quota is used up, or it is read-only."""


def is_full(text: str) -> bool:
    """Whether the text of an error or a log names a full disk."""
    return any(word in text.lower() for word in _FULL_WORDS)


def is_left_over(name: str) -> bool:
    """Whether something unfinished has no owner any more: a running process may be filling it, or one elsewhere."""
    if not (name.startswith(".") and name.endswith((".part", f".{REMOVED}"))):
        return False
    owner = owner_in(name)
    return owner is None or owner.state() == "dead"


class Disk:
    """The operations that change a disk. Each is durable when it returns, and raises OSError if it fails.

    They consist of the five calls at the end, ``_mkdir`` to ``_delete``, which a test may record or let fail.
    """

    def make_folder(self, path: Path, mode: int = 0o777) -> None:
        """Creates a folder, with a mode less the umask, and the missing ones above it."""
        if path.is_dir():
            return
        self.make_folder(path.parent)
        self._mkdir(path, mode)
        self.sync(path.parent)

    def write(self, path: Path, content: bytes) -> None:
        """Creates or overwrites a file. Its name is durable only after the folder's ``sync``."""
        self._write(path, content)
        self.sync(path)

    def sync(self, path: Path) -> None:
        """Makes durable the names in a folder, or the content of a file that something else wrote."""
        self._fsync(path)

    def rename(self, source: Path, target: Path) -> None:
        """Renames a file or a folder within one file system; replaces a file, but not a folder with content."""
        self._rename(source, target)
        self.sync(target.parent)
        if source.parent != target.parent:
            self.sync(source.parent)

    def remove(self, path: Path) -> None:
        """Deletes a file, or a folder with its content; what does not exist is left alone.

        A folder gets a hidden name first: readers see all of it or nothing, also if the machine stops meanwhile.
        """
        if not path.is_symlink() and path.is_dir():
            doomed = path
            if not (path.name.startswith(".") and path.name.endswith(f".{REMOVED}")):
                doomed = path.with_name(f".{path.name.lstrip('.')}.{current_owner()}-{secrets.token_hex(4)}.{REMOVED}")
                try:
                    self.rename(path, doomed)
                except FileNotFoundError:  # another process removed it first
                    return
            path = doomed
        elif not (path.is_symlink() or path.exists()):
            return
        self._delete(path)
        self.sync(path.parent)

    def write_whole(self, path: Path, content: bytes) -> None:
        """Creates or replaces a file so that a crash leaves the old content or the new one. Makes missing folders."""
        self.make_folder(path.parent)
        part = path.with_name(f".{path.name}.{current_owner()}.part")
        try:
            self.write(part, content)
            self.rename(part, path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                self._delete(part)
            raise

    def publish(self, part: Path, final: Path) -> None:
        """Renames a filled folder, or a file, to its final name after syncing all of it, so that it appears whole."""
        if part.is_file():
            self.sync(part)
        for folder, _, names in os.walk(part):
            for name in names:
                path = Path(folder, name)
                if stat.S_ISREG(path.lstat().st_mode):
                    self.sync(path)
            self.sync(Path(folder))
        self.rename(part, final)

    def _mkdir(self, path: Path, mode: int) -> None:
        path.mkdir(mode, exist_ok=True)

    def _write(self, path: Path, content: bytes) -> None:
        """Not through a link: whoever put it there would choose the file that is overwritten."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
            file.write(content)

    def _fsync(self, path: Path) -> None:
        """Raises OSError if the file's content, or a folder's names, may not be durable."""
        is_folder = path.is_dir()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if not (is_folder and error.errno in _NO_FOLDER_SYNC):
                raise

    def _rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def _delete(self, path: Path) -> None:
        if not path.is_symlink() and path.is_dir():
            while True:
                try:
                    shutil.rmtree(path)
                    return
                except FileNotFoundError:  # another process deletes the same folder: what is left, if anything
                    if not path.exists():
                        return
        else:
            path.unlink(missing_ok=True)
