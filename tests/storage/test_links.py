"""Nothing is written through a link in a results folder that leads outside of it; the folder itself may be a link."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from run_specs import run_spec

from harness.core.record import Failure, Outcome, RunRecord
from harness.errors import ResultsError
from harness.storage.disk import Disk
from harness.storage.store import Store

RECORD = RunRecord(run_spec("quality", "sweep"), Outcome("ok"), "s", 1, "2026-01-01T00:00:00+00:00", 1.0)
RUN = RECORD.spec.run_id
OTHER = replace(RECORD, attempt=2)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user that no sweep may change."""
    folder = tmp_path / "outside"
    (folder / RUN / "1").mkdir(parents=True)
    for path in (folder / "precious", folder / RUN / "1" / "record.json"):
        path.write_text("precious")
    return folder


def content(folder: Path) -> dict[Path, str]:
    return {path: path.read_text() if path.is_file() else "" for path in sorted(folder.rglob("*"))}


def save(store: Store) -> None:
    store.save(OTHER)


def lock(store: Store) -> None:
    with store.locked("sweep"):
        pass


def withdraw(store: Store) -> None:
    store.withdraw(RECORD, Failure("inputs", "E", "changed"))


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "the recipe's folder": lambda root, outside: (root / "sweep").symlink_to(outside),
    "a run's folder": lambda root, outside: _in(root / "sweep").joinpath(RUN).symlink_to(outside / RUN),
    "by a relative path": lambda root, outside: (root / "sweep").symlink_to("../outside"),
}


def _in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("write", [save, withdraw])
def test_nothing_is_written_through_a_link(
    tmp_path: Path, outside: Path, link: str, write: Callable[[Store], None]
) -> None:
    root = _in(tmp_path / "results")
    LINKS[link](root, outside)
    before = content(outside)
    with pytest.raises(ResultsError, match="is a link to outside"):
        write(Store(root))
    assert content(outside) == before


@pytest.mark.parametrize("name", ["sweep", "sweep/.lock"])
def test_no_lock_is_made_through_a_link(tmp_path: Path, outside: Path, name: str) -> None:
    root = _in(tmp_path / "results")
    _in((root / name).parent) if name != "sweep" else None
    (root / name).symlink_to(outside if name == "sweep" else outside / "precious")
    before = content(outside)
    with pytest.raises(ResultsError, match="is a link to outside"):
        lock(Store(root))
    assert content(outside) == before


def test_the_results_folder_itself_and_folders_in_it_may_be_links(tmp_path: Path) -> None:
    real = _in(tmp_path / "real")
    (tmp_path / "results").symlink_to(real)
    (real / "other").mkdir()
    (real / "sweep").symlink_to("other")
    store = Store(tmp_path / "results")
    lock(store)
    assert store.save(RECORD).exists()
    assert (real / "other" / RUN / "1" / "record.json").is_file()


def test_a_file_is_not_overwritten_through_a_link(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "link").symlink_to(outside / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        Disk().write(tmp_path / "link", b"x")
    assert (outside / "precious").read_text() == "precious"
