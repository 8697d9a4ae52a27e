"""The operations by which results reach a disk, so that they survive a crash of the machine.

A rename is atomic, but it may reach the disk before the content that it names. So everything is written in one order:
the content and its fsync, the rename, the fsync of the folder. ``Disk`` is the one place that changes a disk; a test
passes one that records the operations, or one that fails.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class Disk:
    """The five operations that change a disk. Each is durable when it returns, and raises OSError if it fails."""

    def make_folder(self, path: Path) -> None:
        """Creates a folder and the missing ones above it."""
        if path.is_dir():
            return
        self.make_folder(path.parent)
        path.mkdir(exist_ok=True)
        self.sync(path.parent)

    def write(self, path: Path, content: bytes) -> None:
        """Creates or overwrites a file. Its name is durable only after the folder's ``sync``."""
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def sync(self, path: Path) -> None:
        """Makes durable the names in a folder, or the content of a file that something else wrote."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Renames a file or a folder within one file system; replaces a file, but not a folder with content."""
        source.replace(target)
        self.sync(target.parent)

    def remove(self, path: Path) -> None:
        """Deletes a file, or a folder with its content; what does not exist is left alone."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def write_whole(self, path: Path, content: bytes) -> None:
        """Creates or replaces a file so that a crash leaves the old content or the new one."""
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self.write(part, content)
            self.rename(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def publish(self, part: Path, final: Path) -> None:
        """Renames a filled folder to its final name after syncing all that it holds, so that it appears whole."""
        for folder, _, names in os.walk(part):
            for name in names:
                self.sync(Path(folder, name))
            self.sync(Path(folder))
        self.rename(part, final)
