"""Artifacts below a URL, where machines that share no disk find what another of them made.

``<kind>/<run id>/outcome.json`` is created last and only if there is none: it names each file with its size and hash,
and the seal under which they are. So of two machines that make one artifact, the first one's counts, and no reader ever
sees files of both. A fetched file counts only if its hash is what the outcome names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.foreign import shown
from harness.errors import ResultsError
from harness.storage.folder_seal import SealedFile, find_damage
from harness.storage.objects import Objects

SEAL_CHARACTERS = 16
"""Of a folder's seal, in the names of its files."""


@dataclass(frozen=True)
class SharedCache:
    """The artifacts at a URL. Methods raise OSError if the store refuses or cannot be reached."""

    objects: Objects

    def refuse_unreachable(self) -> None:
        """Raises ResultsError if nothing can be read there, which is better known before a sweep."""
        try:
            self.objects.list("machine")
        except OSError as error:
            raise ResultsError(f"--cache: {error.strerror}") from None

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
        for file in files:
            name, target = f"{at}/{file.path}", part / file.path
            here = listed.get(name)
            if here is None or here.bytes != file.bytes:
                size = "missing" if here is None else f"{here.bytes} bytes, but {file.bytes} when it was written"
                raise ResultsError(f"{self.objects.at(name)}: {size}")
            if not target.resolve().is_relative_to(part.resolve()):
                raise ResultsError(f"{shown(self.objects.at(at))}: names a file outside of its folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.objects.fetch(here, target)
        for reason in find_damage(part, files, read_data=True):
            raise ResultsError(f"{self.objects.at(at)}{reason.removeprefix(str(part))}")

    def send(
        self, kind: str, run_id: str, seal: str, files: Sequence[SealedFile], folder: Path, outcome: tuple[str, bytes]
    ) -> None:
        """Adds an artifact, whose ``outcome`` is a file's name and content. If there is one of this run, that stays."""
        name, content = outcome
        at = _files_of(kind, run_id, seal)
        for file in files:
            self.objects.send(folder / file.path, f"{at}/{file.path}")
        if not self.objects.create(f"{kind}/{run_id}/{name}", content):  # another machine was quicker
            self.objects.delete([f"{at}/{file.path}" for file in files])

    def remove(self, kind: str, run_id: str, name: str) -> None:
        """Deletes an artifact; first what makes it count."""
        self.objects.delete([f"{kind}/{run_id}/{name}"])
        self.objects.delete(list(self.objects.list(f"{kind}/{run_id}")))


def _files_of(kind: str, run_id: str, seal: str) -> str:
    return f"{kind}/{run_id}/{seal[:SEAL_CHARACTERS]}"
