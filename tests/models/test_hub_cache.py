"""What is deleted of the hub's cache: one commit of one repository, in the layout that huggingface_hub itself uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.models import hub

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
