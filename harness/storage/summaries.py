"""What was derived from records, kept beside them in one hidden file, so that it need not be derived again.

Every entry is under a key that names the content which it was derived from. The first line names the code that derived
it and the folder that it was made in, with the hash of all that follows: a file that is missing, damaged, of other code
or copied from elsewhere costs time, and changes no answer. ``qharness verify`` does not use it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from harness.core.foreign import read_file
from harness.errors import ResultsError
from harness.storage.disk import Disk

SUMMARIES = ".summaries"
"""The file, in the results folder that a user names."""
MAX_BYTES = 2**30


class SummaryFile:
    """The summaries in a results folder that a certain ``code`` derived."""

    def __init__(self, folder: Path, code: str) -> None:
        self._path = folder / SUMMARIES
        self._code = code

    def read(self) -> dict[str, str]:
        """The entries by key; none if they cannot be used."""
        with suppress(OSError, ResultsError, ValueError):
            head, _, content = read_file(self._path, MAX_BYTES, ResultsError).partition(b"\n")
            if head == self._head(content):
                return dict(line.split(" ", 1) for line in content.decode().splitlines())
        return {}

    def write(self, entries: Mapping[str, str]) -> None:
        """Replaces the entries, each of one line, if the folder can be written."""
        content = "".join(f"{key} {entry}\n" for key, entry in entries.items()).encode()
        if len(content) < MAX_BYTES:
            with suppress(OSError):
                Disk().write_whole(self._path, self._head(content) + b"\n" + content)

    def _head(self, content: bytes) -> bytes:
        status = self._path.parent.stat()
        place = [self._code, status.st_dev, status.st_ino, hashlib.sha256(content).hexdigest()]
        return json.dumps(place).encode()
