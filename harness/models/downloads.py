"""Downloads that are deleted again: each is noted before it begins, so that a killed command's is found and deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.owner import Owner, current_owner, owner_in
from harness.errors import SourceError
from harness.models import hub
from harness.storage.disk import Disk


@dataclass(frozen=True)
class Downloads:
    """What commands of this user put into the hub's cache and delete again. ``folder`` has a note of each."""

    folder: Path

    def is_users(self, model: str, commit: str) -> bool:
        """Whether a repository at that commit is in the hub's cache, and no command deletes it again."""
        return hub.is_cached(model, commit) and not self._note(model, commit).exists()

    @contextmanager
    def borrowed(self, model: str, commit: str) -> Iterator[None]:
        """What is downloaded of a repository within it is deleted at its end; what was in the cache before stays.

        What a killed command had downloaded counts as downloaded within it. Raises SourceError while another command
        that runs has it borrowed.
        """
        if self.is_users(model, commit):
            yield
            return
        place = self._note(model, commit)
        known = _read(place)
        if known is not None and known.owner != current_owner() and known.owner.state() != "dead":
            raise SourceError(f"{model!r}: another command that runs downloads it, and will delete it; try again later")
        content = {"model": model, "commit": commit, "owner": str(current_owner())}
        Disk().write_whole(place, json.dumps(content).encode())
        try:
            yield
        finally:
            self._give_back(model, commit)

    def delete_abandoned(self) -> None:
        """Deletes what killed commands downloaded."""
        for place in self.folder.glob("*.json"):
            note = _read(place)
            if note is not None and note.owner.state() == "dead" and place == self._note(note.model, note.commit):
                self._give_back(note.model, note.commit)

    def _give_back(self, model: str, commit: str) -> None:
        hub.forget(model, commit)
        self._note(model, commit).unlink(missing_ok=True)

    def _note(self, model: str, commit: str) -> Path:
        return self.folder / f"{hub.repository_folder(model).name}--{commit}.json"


@dataclass(frozen=True)
class _Note:
    model: str
    commit: str
    owner: Owner


def _read(place: Path) -> _Note | None:
    """None if there is no note, or not a whole one."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        content = json.loads(place.read_text(encoding="utf-8"))
        if owner := owner_in(content["owner"]):
            return _Note(str(content["model"]), str(content["commit"]), owner)
    return None
