"""Artifacts below a URL, where machines that share no disk find what another of them made.

``<kind>/<run id>/outcome.json`` is created last and only if there is none: it names each file with its size and hash,
and the seal under which they are. So of two machines that make one artifact, the first one's counts, and no reader ever
sees files of both. A fetched file counts only if its hash is what the outcome names.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.foreign import shown
from harness.errors import ResultsError, reason_of
from harness.storage.folder_seal import SealedFile, find_damage
from harness.storage.objects import Listed, Objects

SEAL_CHARACTERS = 16
"""Of a folder's seal, in the names of its files."""


@dataclass(frozen=True)
class SharedCache:
    """The artifacts at a URL. Methods raise OSError if the store refuses or cannot be reached."""

    objects: Objects

    def refuse_unreachable(self, to_write: bool = False) -> None:
        """Raises ResultsError if nothing can be read there, or written, which is better known before a sweep."""
        try:
            self.objects.list("machine")
            if to_write:
                self.objects.now(f".writable-{secrets.token_hex(4)}")
        except OSError as error:
            raise ResultsError(f"--cache: {reason_of(error)}") from None

    def outcome(self, kind: str, run_id: str, name: str, limit_bytes: int) -> bytes | None:
        """The file that describes an artifact; None if there is none. Raises ResultsError if it is too large."""
        try:
            return self.objects.read(f"{kind}/{run_id}/{name}", limit_bytes)
        except FileNotFoundError:
            return None

    def fetch(self, kind: str, run_id: str, seal: str, files: Sequence[SealedFile], part: Path) -> None:
        """Writes the files of an artifact into a folder. Raises ResultsError for the first that is not as sealed."""
        at = _files_of(kind, run_id, seal)
        listed = self.objects.list(at)
        reason = self.difference(kind, run_id, seal, files, listed)
        if reason is not None:
            raise ResultsError(reason)
        for file in files:
            target = part / file.path
            if not target.resolve().is_relative_to(part.resolve()):
                raise ResultsError(f"{shown(self.objects.at(at))}: names a file outside of its folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.objects.fetch(listed[f"{at}/{file.path}"], target)
        for reason in find_damage(part, files, read_data=True):
            raise ResultsError(f"{self.objects.at(at)}{reason.removeprefix(str(part))}")

    def difference(
        self, kind: str, run_id: str, seal: str, files: Sequence[SealedFile], listed: Mapping[str, Listed]
    ) -> str | None:
        """The first file of an artifact that is not there, or not with its size; None if all are."""
        for file in files:
            name = f"{_files_of(kind, run_id, seal)}/{file.path}"
            here = listed.get(name)
            if here is None or here.bytes != file.bytes:
                size = "missing" if here is None else f"{here.bytes} bytes, but {file.bytes} when it was written"
                return f"{self.objects.at(name)}: {size}"
        return None

    def send(
        self, kind: str, run_id: str, seal: str, files: Sequence[SealedFile], folder: Path, outcome: tuple[str, bytes]
    ) -> None:
        """Adds an artifact, whose ``outcome`` is a file's name and content. If there is one of this run, that stays.

        What interrupted pushes left of this run is deleted. So are the files of one that goes on elsewhere: it comes
        too late, and its outcome will not be taken.
        """
        name, content = outcome
        at = _files_of(kind, run_id, seal)
        for file in files:
            self.objects.send(folder / file.path, f"{at}/{file.path}")
        if not self.objects.create(f"{kind}/{run_id}/{name}", content):  # another machine was quicker
            self.objects.delete([f"{at}/{file.path}" for file in files])
            return
        with suppress(OSError):  # 'qharness repair' finds them
            self.objects.delete(self.leftovers(kind, run_id, seal, name, self.objects.list(f"{kind}/{run_id}")))

    def leftovers(self, kind: str, run_id: str, seal: str, name: str, listed: Iterable[str]) -> list[str]:
        """Those objects of a run that do not belong to its artifact, whose outcome is called ``name``."""
        own = f"{_files_of(kind, run_id, seal)}/"
        return [each for each in listed if each != f"{kind}/{run_id}/{name}" and not each.startswith(own)]

    def remove(self, kind: str, run_id: str, name: str) -> None:
        """Deletes an artifact; first what makes it count."""
        self.objects.delete([f"{kind}/{run_id}/{name}"])
        self.objects.delete(list(self.objects.list(f"{kind}/{run_id}")))


def _files_of(kind: str, run_id: str, seal: str) -> str:
    return f"{kind}/{run_id}/{seal[:SEAL_CHARACTERS]}"
