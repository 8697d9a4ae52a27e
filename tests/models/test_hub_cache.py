"""What is deleted of the hub's cache: one commit of one repository, in the layout that huggingface_hub itself uses.

What a command downloads to delete it again is known by a note, also after the command was killed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.core.owner import Owner, current_owner
from harness.errors import SourceError
from harness.models import hub
from harness.models.downloads import Downloads

OLD, NEW = "a" * 40, "b" * 40


def cached(root: Path, repository: str, commit: str, blob: str) -> Path:
    """A file of a repository at a commit, linked to its content as huggingface_hub keeps it."""
    folder = root / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "blobs" / blob).write_text(blob)
    (snapshot / "config.json").symlink_to(Path("../../blobs") / blob)
    return snapshot / "config.json"


def test_one_commit_is_deleted_and_all_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path)
    before, fetched = cached(tmp_path, "who/model", OLD, "1" * 40), cached(tmp_path, "who/model", NEW, "2" * 40)
    other = cached(tmp_path, "who/other", OLD, "3" * 40)
    assert hub.is_cached("who/model", NEW)
    assert not hub.is_cached("who/other", NEW)
    hub.forget("who/model", NEW)
    assert not hub.is_cached("who/model", NEW)
    assert not fetched.exists()
    assert before.read_text() == "1" * 40
    assert other.read_text() == "3" * 40
    assert not (tmp_path / "models--who--model" / "blobs" / ("2" * 40)).exists()


def test_without_a_cache_nothing_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "none")
    assert not hub.is_cached("who/model", NEW)
    hub.forget("who/model", NEW)


def test_a_copy_of_a_repository_has_the_same_commits_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path)
    mine = [cached(tmp_path, f"who/copy-{number}", NEW, str(number) * 40) for number in range(8)]
    fetched = cached(tmp_path, "who/model", NEW, "9" * 40)
    hub.forget("who/model", NEW)
    assert not fetched.exists()
    assert all(each.exists() for each in mine)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Downloads:
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "hub")
    return Downloads(tmp_path / "notes")


def killed_download(downloads: Downloads, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a repository of which a command had downloaded a part when it was killed, and another's beside it."""
    forgotten: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Downloads, "_give_back", lambda self, model, commit: forgotten.append(model))
        with downloads.borrowed("who/model", NEW):
            part = cached(root, "who/model", NEW, "1" * 40)
    (note,) = downloads.folder.iterdir()
    content = json.loads(note.read_text())
    dead = replace(current_owner(), start=1)
    note.write_text(json.dumps({**content, "owner": str(dead)}))
    assert forgotten == ["who/model"]
    return part


def test_what_is_borrowed_goes_and_what_was_there_stays(downloads: Downloads, tmp_path: Path) -> None:
    users = cached(tmp_path / "hub", "who/other", OLD, "3" * 40)
    with downloads.borrowed("who/model", NEW), downloads.borrowed("who/other", OLD):
        borrowed = cached(tmp_path / "hub", "who/model", NEW, "1" * 40)
        assert not downloads.is_users("who/model", NEW)
    assert not borrowed.exists()
    assert users.exists()
    assert not list(downloads.folder.iterdir())


def test_a_part_that_a_killed_command_left_is_no_users_and_goes(
    downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = killed_download(downloads, tmp_path / "hub", monkeypatch)
    assert not downloads.is_users("who/model", NEW)
    downloads.delete_abandoned()
    assert not part.exists()
    assert not list(downloads.folder.iterdir())


def test_a_resumed_command_takes_the_part_over_and_deletes_it_at_the_end(
    downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = killed_download(downloads, tmp_path / "hub", monkeypatch)
    with downloads.borrowed("who/model", NEW):
        assert part.exists()
    assert not part.exists()


def test_what_a_running_command_borrows_is_left_to_it(
    downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = killed_download(downloads, tmp_path / "hub", monkeypatch)
    monkeypatch.setattr(Owner, "state", lambda owner: "living")
    downloads.delete_abandoned()
    assert part.exists()
    with pytest.raises(SourceError, match="another command that runs"), downloads.borrowed("who/model", NEW):
        pass


def test_where_no_commit_stays_what_was_begun_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path)
    begun = tmp_path / "models--who--model" / "blobs" / f"{'1' * 40}.incomplete"
    begun.parent.mkdir(parents=True)
    begun.write_text("half")
    hub.forget("who/model", NEW)
    assert not begun.parents[1].exists()
    cached(tmp_path, "who/model", OLD, "2" * 40)
    begun.write_text("half")
    hub.forget("who/model", NEW)
    assert hub.is_cached("who/model", OLD)


def test_a_damaged_note_deletes_nothing(downloads: Downloads, tmp_path: Path) -> None:
    kept = cached(tmp_path / "hub", "who/model", NEW, "1" * 40)
    downloads.folder.mkdir()
    for number, content in enumerate(("", "[]", '{"owner": "1-1-aaaaaa-bbbbbb"}', '{"owner": 1}')):
        (downloads.folder / f"{number}.json").write_text(content)
    downloads.delete_abandoned()
    assert kept.exists()
