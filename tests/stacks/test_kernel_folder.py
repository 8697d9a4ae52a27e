"""Compiled kernels, which are run, come from a folder that only this user can write to."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from harness.stacks.variables import compiled_kernels

NAME = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, and beside it the user's cache."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_it_is_made_for_this_user_alone(shared: Path) -> None:
    folder = Path(compiled_kernels({})[NAME])
    assert folder.parent == shared
    assert folder.stat().st_mode & 0o777 == 0o700
    assert compiled_kernels({})[NAME] == str(folder)


def test_one_that_others_may_write_to_is_not_used(shared: Path) -> None:
    folder = Path(compiled_kernels({})[NAME])
    folder.chmod(0o777)
    assert Path(compiled_kernels({})[NAME]).parent == shared / "cache" / "kernels"


def test_a_link_in_its_place_is_not_followed(shared: Path) -> None:
    folder = Path(compiled_kernels({})[NAME])
    folder.rmdir()
    (shared / "theirs").mkdir(mode=0o700)
    folder.symlink_to(shared / "theirs")
    assert Path(compiled_kernels({})[NAME]).parent == shared / "cache" / "kernels"
