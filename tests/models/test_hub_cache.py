"""What is deleted of the hub's cache: what a command downloaded, in the layout that huggingface_hub itself uses.

What a command downloads to delete it again is known by a note, also after the command was killed.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from harness.core.owner import Owner, current_owner
from harness.errors import SourceError
from harness.models import downloads, hub

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


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def files(folder: Path) -> set[str]:
    """What is in a folder, without locks."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {name for name in found if not name.startswith(".locks/")}


def test_one_commit_is_deleted_and_all_else_stays(cache: Path) -> None:
    users = cached(cache, "who/model", OLD, "1" * 40), cached(cache, "who/other", OLD, "3" * 40)
    before = files(cache)
    with downloads.borrowed("who/model", NEW):
        cached(cache, "who/model", NEW, "2" * 40)
        shared = cache / "models--who--model" / "snapshots" / NEW / "tokenizer.json"
        shared.symlink_to(Path("../../blobs") / ("1" * 40))
    assert files(cache) == before
    assert [each.read_text() for each in users] == ["1" * 40, "3" * 40]


def test_nothing_stays_where_nothing_was(cache: Path) -> None:
    with downloads.borrowed("who/model", NEW):
        cached(cache, "who/model", NEW, "1" * 40)
        (cache / "models--who--model" / "blobs" / f"{'2' * 40}.abcdef12.incomplete").write_text("half")
    assert [each.name for each in cache.iterdir()] == [".locks"]


def test_files_of_the_same_commit_that_were_there_stay(cache: Path) -> None:
    """A configuration that another tool looked at, and a download that was begun: neither is the command's."""
    config = cached(cache, "who/model", NEW, "1" * 40)
    begun = cache / "models--who--model" / "blobs" / f"{'2' * 40}.incomplete"
    begun.write_text("half")
    with downloads.borrowed("who/model", NEW):
        weights = config.with_name("model.safetensors")
        begun.rename(begun.with_suffix(""))  # as a release of huggingface_hub that goes on with it does
        weights.symlink_to(Path("../../blobs") / ("2" * 40))
        more = cached(cache, "who/model", "c" * 40, "4" * 40)  # by another tool meanwhile
        config.with_name("extra.json").write_text("{}")  # without links, as on some file systems
    assert config.read_text() == "1" * 40
    assert begun.with_suffix("").read_text() == "half"
    assert more.read_text() == "4" * 40
    assert sorted(each.name for each in config.parent.iterdir()) == ["config.json"]


def test_a_failed_download_deletes_nothing_that_was_begun(cache: Path) -> None:
    begun = cache / "models--who--model" / "blobs" / f"{'2' * 40}.incomplete"
    begun.parent.mkdir(parents=True)
    begun.write_text("half")
    with pytest.raises(SourceError), downloads.borrowed("who/model", NEW):
        raise SourceError("the hub does not answer")
    assert files(cache) == {"models--who--model/blobs/" + begun.name}


def test_what_another_process_downloads_meanwhile_stays(cache: Path) -> None:
    with downloads.borrowed("who/model", NEW):
        cached(cache, "who/model", NEW, "1" * 40)
        begun = cache / "models--who--model" / "blobs" / f"{'2' * 40}.abcdef12.incomplete"
        begun.write_text("half")
        lock = FileLock(cache / ".locks" / "models--who--model" / f"{'2' * 40}.lock")
        lock.acquire()
    lock.release()
    assert files(cache) == {"models--who--model/blobs/" + begun.name}


def test_links_that_a_user_made_are_not_followed(cache: Path, tmp_path: Path) -> None:
    """A repository's folder on another disk, and a file that a tool made a link to a shared copy."""
    elsewhere, shared = tmp_path / "disk", tmp_path / "shared"
    elsewhere.mkdir()
    shared.write_text("shared")
    (cache / "models--who--model").symlink_to(elsewhere)
    with downloads.borrowed("who/model", NEW):
        config = cached(cache, "who/model", NEW, "1" * 40)
        blob = config.parents[2] / "blobs" / ("1" * 40)
        blob.unlink()
        blob.symlink_to(shared)
    assert shared.read_text() == "shared"
    assert files(elsewhere) == set()
    assert (cache / "models--who--model").is_symlink()


def test_a_repository_that_huggingface_hub_calls_damaged_is_deleted_too(cache: Path) -> None:
    """A reference to a commit that is not there, which a download that was ended early leaves."""
    reference = cache / "models--who--model" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text(OLD)
    with downloads.borrowed("who/model", NEW):
        cached(cache, "who/model", NEW, "1" * 40)
    assert files(cache) == {"models--who--model/refs/main"}


def test_a_copy_of_a_repository_has_the_same_commits_and_stays(cache: Path) -> None:
    mine = [cached(cache, f"who/copy-{number}", NEW, str(number) * 40) for number in range(8)]
    with downloads.borrowed("who/model", NEW):
        fetched = cached(cache, "who/model", NEW, "9" * 40)
    assert not fetched.exists()
    assert all(each.exists() for each in mine)


def killed_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a repository of which a command had downloaded a part when it was killed."""
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "_give_back", lambda model, commit, before: None)
        with downloads.borrowed("who/model", NEW):
            part = cached(cache, "who/model", NEW, "1" * 40)
    note = note_of("who/model")
    content = json.loads(note.read_text())
    dead = replace(current_owner(), start=1)
    note.write_text(json.dumps({**content, "owner": str(dead)}))
    return part


def note_of(model: str) -> Path:
    (note,) = hub.repository_folder(model).glob("qharness-*.json")
    return note


def test_a_whole_checkpoint_of_the_user_is_used_without_a_note(cache: Path, tiny: Path) -> None:
    folder = cache / "models--who--model" / "snapshots" / NEW
    shutil.copytree(tiny, folder)
    before = files(cache)
    assert downloads.is_users("who/model", NEW)
    with downloads.borrowed("who/model", NEW):
        assert files(cache) == before
    assert files(cache) == before


def test_a_part_that_a_killed_command_left_goes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_download(cache, monkeypatch)
    assert not downloads.is_users("who/model", NEW)
    downloads.delete_abandoned()
    assert files(cache) == set()


def test_what_was_there_before_a_killed_command_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = cached(cache, "who/model", OLD, "3" * 40)
    part = killed_download(cache, monkeypatch)
    downloads.delete_abandoned()
    assert not part.exists()
    assert users.read_text() == "3" * 40


def test_a_resumed_command_takes_the_part_over_and_deletes_it_at_the_end(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = killed_download(cache, monkeypatch)
    with downloads.borrowed("who/model", NEW):
        assert part.exists()
        downloads.delete_abandoned()
        assert part.exists()
    assert not part.exists()


def test_what_a_user_deleted_and_downloaded_again_is_the_users(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_download(cache, monkeypatch)
    shutil.rmtree(cache / "models--who--model")
    users = cached(cache, "who/model", NEW, "1" * 40)
    downloads.delete_abandoned()
    with downloads.borrowed("who/model", NEW):
        pass
    assert users.exists()


def test_what_a_running_command_borrows_is_left_to_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = killed_download(cache, monkeypatch)
    monkeypatch.setattr(Owner, "state", lambda owner: "unknown")
    downloads.delete_abandoned()
    assert part.exists()
    named = re.escape(str(note_of("who/model")))
    with pytest.raises(SourceError, match=named), downloads.borrowed("who/model", NEW):
        pass
    assert part.exists()


def test_a_damaged_note_deletes_nothing(cache: Path) -> None:
    kept = cached(cache, "who/model", NEW, "1" * 40)
    for number, content in enumerate(("", "[]", '{"owner": "1-1-aaaaaa-bbbbbb"}', '{"owner": 1}')):
        (cache / "models--who--model" / f"qharness-{number}.json").write_text(content)
    downloads.delete_abandoned()
    assert kept.exists()
