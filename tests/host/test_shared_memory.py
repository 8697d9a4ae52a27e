"""What may be deleted in /dev/shm: on the real folder, with this process as the one that has files mapped."""

from __future__ import annotations

import mmap
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from harness.host.shared_memory import FOLDER, Shared, delete_shared, find_shared, list_shared

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")

MADE_BY_LIBRARIES = (
    "psm_{}",
    "sem.loky-1-{}",
    "sem.mp-{}",
    "torch_1_{}",
    "vllm_offload_{}.mmap",
    "serve-{}-[0-1]-cpushm_0",
    "__KMP_REGISTERED_LIB_1_{}",
    "nccl-{}",
)
OF_PEOPLE = ("{}-model.gguf", "model-psm_{}", "sem.{}", "folder-{}/psm_1", "folder-{}/vllm_1")


class Folder:
    """Files of this test alone in the real folder; each name carries a number drawn for it."""

    def __init__(self) -> None:
        self.number = uuid4().hex

    def make(self, name: str, maps: bool = True) -> tuple[Path, mmap.mmap | None]:
        path = FOLDER / name.format(self.number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
        with path.open("r+b") as file:
            return path, mmap.mmap(file.fileno(), 0) if maps else None

    def own(self, found: set[Shared]) -> set[Path]:
        return {shared.path for shared in found if self.number in str(shared.path)}


@pytest.fixture
def folder() -> Iterator[Folder]:
    folder = Folder()
    yield folder
    for path in FOLDER.glob(f"*{folder.number}*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def test_only_what_libraries_made_directly_in_the_folder_goes(folder: Folder) -> None:
    made = [folder.make(name) for name in (*MADE_BY_LIBRARIES, *OF_PEOPLE)]
    link = FOLDER / f"torch_{folder.number}"
    link.symlink_to(made[-1][0])
    expected = {FOLDER / name.format(folder.number) for name in MADE_BY_LIBRARIES}
    found = find_shared([os.getpid()])
    assert folder.own(found) == folder.own(list_shared()) == expected
    for _, mapping in made:
        assert mapping is not None
        mapping.close()
    delete_shared(shared for shared in found if shared.path in expected)
    assert {path for path, _ in made if path.exists()} == {path for path, _ in made} - expected
    assert link.is_symlink()


def test_what_the_processes_have_not_mapped_is_not_theirs(folder: Folder) -> None:
    folder.make(f"sem.loky-{os.getpid()}-{{}}", maps=False)
    _, mapping = folder.make("psm_{}")
    assert mapping is not None
    assert folder.own(find_shared([os.getppid()])) == set()
    mapping.close()
    assert folder.own(find_shared([os.getpid()])) == set()


def test_what_a_running_process_has_mapped_stays(folder: Folder) -> None:
    path, mapping = folder.make("psm_{}")
    found = {shared for shared in find_shared([os.getpid()]) if shared.path == path}
    delete_shared(found)
    assert path.exists()
    assert mapping is not None
    mapping.close()
    delete_shared(found)
    assert not path.exists()


def test_another_file_of_the_same_name_stays(folder: Folder) -> None:
    path, mapping = folder.make("psm_{}")
    assert mapping is not None
    found = {shared for shared in find_shared([os.getpid()]) if shared.path == path}
    path.rename(FOLDER / f"kept-{folder.number}")
    folder.make("psm_{}", maps=False)
    mapping.close()
    delete_shared(found)
    assert path.exists()


def test_a_file_may_be_required_to_be_younger_than_who_has_it(folder: Folder) -> None:
    """A process that has an older file only opened it."""
    younger, _keep = folder.make("psm_{}")
    older, _keep_too = folder.make("torch_{}")
    os.utime(older, (1e9, 1e9))
    assert folder.own(find_shared([os.getpid()])) == {younger, older}
    assert folder.own(find_shared([os.getpid()], younger=True)) == {younger}
