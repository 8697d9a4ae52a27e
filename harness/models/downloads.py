"""Downloads that are deleted again: each is noted before it begins, so that a killed command's is found and deleted.

A note lies in the repository's folder of the hub's cache: all commands that share the cache see it, and who deletes the
folder deletes the note.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from harness.core.owner import Owner, current_owner, owner_in
from harness.errors import SourceError
from harness.models import hub
from harness.models.sources import is_here
from harness.storage.disk import Disk

PREFIX = "qharness-"
"""What the name of a note begins with; its commit follows."""


def is_users(model: str, commit: str) -> bool:
    """Whether a checkpoint at that commit is whole in the hub's cache, and no command deletes it again."""
    return not _place(model, commit).exists() and is_here(model, commit)


@contextmanager
def borrowed(model: str, commit: str) -> Iterator[None]:
    """What is downloaded of a repository within it is deleted at its end; files that were in the cache before stay.

    What a killed command had downloaded counts as downloaded within it. Raises SourceError while another command
    that runs has it borrowed.
    """
    if is_users(model, commit):
        yield
        return
    try:
        before = _note_down(model, commit)
    except OSError as error:
        raise SourceError(f"{model!r}: cannot write to the hub's cache: {error}") from None
    try:
        yield
    finally:
        with _locked(model):
            _give_back(model, commit, before)


def _note_down(model: str, commit: str) -> frozenset[str]:
    """Notes a download that begins now, or takes a killed command's over; returns what was there before it."""
    place = _place(model, commit)
    with _locked(model):
        known = _read(place)
        if known is not None and known.owner != current_owner() and known.owner.state() != "dead":
            raise SourceError(
                f"{model!r}: another command that runs downloads it, and will delete it; try again later, "
                f"or, if that command was killed on another machine, delete {place}"
            )
        before = hub.files_of(model) if known is None else known.before
        content = {"model": model, "commit": commit, "owner": str(current_owner()), "before": sorted(before)}
        Disk().write_whole(place, json.dumps(content).encode())
    return before


def delete_abandoned() -> None:
    """Deletes what killed commands downloaded."""
    for place in hub.cache_folder().glob(f"models--*/{PREFIX}*.json"):
        if (found := _read(place)) is None or place != _place(found.model, found.commit):
            continue
        with _locked(found.model):
            note = _read(place)  # another command may have taken it over meanwhile
            if note is not None and note.owner.state() == "dead":
                _give_back(note.model, note.commit, note.before)


def _give_back(model: str, commit: str, before: frozenset[str]) -> None:
    hub.forget(model, commit, before)
    _place(model, commit).unlink(missing_ok=True)
    hub.remove_if_empty(model)


def _locked(model: str) -> FileLock:
    """Held while a note is read and written, or what it names is deleted."""
    path = hub.lock_folder(model) / f"{PREFIX}downloads.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def _place(model: str, commit: str) -> Path:
    return hub.repository_folder(model) / f"{PREFIX}{commit}.json"


@dataclass(frozen=True)
class _Note:
    """``before`` are the files that the hub's cache had of the repository, as ``hub.files_of`` names them."""

    model: str
    commit: str
    owner: Owner
    before: frozenset[str]


def _read(place: Path) -> _Note | None:
    """None if there is no note, or not a whole one."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        content = json.loads(place.read_text(encoding="utf-8"))
        if owner := owner_in(content["owner"]):
            return _Note(str(content["model"]), str(content["commit"]), owner, frozenset(map(str, content["before"])))
    return None
