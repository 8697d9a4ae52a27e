"""Hub caches of their own, for downloads that are deleted again; the user's is only read."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from gguf_files import write_q8_0

from harness.core.owner import current_owner
from harness.errors import SourceError
from harness.execution.debris import clear
from harness.models.downloads import FOLDER, hub_cache
from harness.models.sources import inspect, is_here, label_of, on_hub
from harness.recipe import Model

COMMIT = "a" * 40
FILE = "who/model/more/m.Q8_0.gguf"


@pytest.fixture(autouse=True)
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(cache: Path) -> Path:
    return cache / "models--who--model" / "snapshots" / COMMIT


def test_a_cache_of_its_own_is_deleted_also_after_a_fault(tmp_path: Path) -> None:
    def fail() -> None:
        with hub_cache(tmp_path) as first, hub_cache(tmp_path) as second:
            assert first != second
            snapshot(first).mkdir(parents=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_one_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / FOLDER).touch()
    with pytest.raises(SourceError, match="cannot write to the cache"), hub_cache(tmp_path):
        pass


def test_that_of_a_killed_command_is_debris_and_that_of_a_running_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # the system's may hold what other commands left
    with hub_cache(tmp_path) as running:
        dead = replace(current_owner(), start=1)
        left = running.with_name(running.name.replace(str(current_owner()), str(dead)))
        snapshot(left).mkdir(parents=True)
        assert clear([tmp_path]).paths == (left,)
        assert not left.exists()
        assert running.exists()


def test_a_model_is_looked_up_in_the_users_cache_and_then_in_the_other(users: Path, tiny: Path, tmp_path: Path) -> None:
    model, other = Model(id="who/model", revision=COMMIT), tmp_path / "other"
    assert inspect(model, tmp_path, other).ref.path == ""
    shutil.copytree(tiny, snapshot(other))
    found = inspect(model, tmp_path, other)
    assert found.ref.path == str(snapshot(other))
    assert not inspect(model, tmp_path).matrices
    assert not is_here("who/model", COMMIT)
    snapshot(users).mkdir(parents=True)
    shutil.copy(tiny / "config.json", snapshot(users))  # a part of it, as another tool looked at it
    assert asdict(inspect(model, tmp_path, other)) == asdict(found)
    shutil.copytree(tiny, snapshot(users), dirs_exist_ok=True)
    whole = inspect(model, tmp_path, other)
    assert whole.ref.path == str(snapshot(users))
    assert whole.ref.content_id == found.ref.content_id
    assert is_here("who/model", COMMIT)


def test_a_gguf_file_of_a_repository_is_a_model(users: Path, tmp_path: Path) -> None:
    assert on_hub(FILE) == ("who/model", "more/m.Q8_0.gguf")
    assert label_of(FILE) == "m.Q8_0"
    entry = Model(id=FILE, revision=COMMIT)
    absent = inspect(entry, tmp_path)
    assert (absent.ref.kind, absent.ref.path, absent.matrices) == ("gguf", "", {})
    place = snapshot(users) / "more" / "m.Q8_0.gguf"
    place.parent.mkdir(parents=True)
    write_q8_0(place)
    found = inspect(entry, tmp_path)
    assert (found.ref.path, found.ref.native_quantization) == (str(place), "Q8_0")
    assert found.ref.content_id == absent.ref.content_id
    assert found.files is not None
    assert [each.path for each in found.files.files] == [str(place)]


@pytest.mark.parametrize("name", [FILE, "who/model/../../m.gguf", "m.gguf"])
def test_a_file_that_is_not_here_and_names_no_commit_is_a_missing_file(name: str, tmp_path: Path) -> None:
    """Nor is one outside of its repository a file of it."""
    with pytest.raises(SourceError, match="no file or folder"):
        inspect(Model(id=name, revision=None if name == FILE else COMMIT), tmp_path)
