"""``qharness verify``: whether every file of a results folder or a cache is as it was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from harness.api.checked import Checked, attempts
from harness.api.verify_bundle import verify_bundle
from harness.core.foreign import shown
from harness.core.identity import RUN_ID
from harness.core.job import JOBS
from harness.core.owner import temporary_folder
from harness.errors import ResultsError, UsageError, reason_of
from harness.storage.bundle import is_bundle
from harness.storage.cache import Cache, CacheFault, shared_faults
from harness.storage.disk import is_left_over
from harness.storage.mirror import Mirror, unfinished
from harness.storage.objects import Objects, is_url, local_path
from harness.storage.reading import MAX_FOLDER_DEPTH, attempt_folders
from harness.storage.seal import RECORD
from harness.storage.shared_cache import SharedCache
from harness.storage.store import DAMAGED


def verify(path: str | Path, read_data: bool = False, signers: str | Path | None = None) -> Iterator[Checked]:
    """Yields every attempt of a results folder, or every folder of a cache, and what is left over or set aside there.

    Of a bundle, every file, whatever its manifest lacks, and every file that does not follow from the records;
    ``signers`` is a file of those who may have signed it (ALLOWED SIGNERS of ssh-keygen(1)).

    Of results all files are always read. Of a cache, names, sizes and JSON files are checked, and with ``read_data``
    the hash of every file. Either may be at a URL: all that is read is fetched. Raises ResultsError if the path is
    neither.
    """
    if is_bundle(path):
        return verify_bundle(local_path(path), None if signers is None else Path(signers))
    if signers is not None:
        raise UsageError(f"{shown(str(path))}: only bundles are signed; leave --signers out")
    if is_url(path):
        return _verify_remote(str(path), read_data)
    root = local_path(path)
    if not root.is_dir():
        raise ResultsError(f"{shown(root)}: no such folder")
    return _verify_cache(root, read_data) if is_cache(root) else _verify_results(root)


def is_cache(root: Path) -> bool:
    """Whether a folder has folders of kinds of runs, and no attempts in them, as results have."""
    return bool(_kinds(root)) and next(attempt_folders(root), None) is None


def debris(root: Path) -> Iterator[Checked]:
    """What interrupted writes left, and the damaged attempts that were set aside."""
    for name, folders, files in os.walk(root):
        here = Path(name)
        for each in sorted((*folders, *files)):
            if here.name == DAMAGED:
                yield Checked(here / each, "set aside", "damaged; delete it when nobody needs it")
            elif is_left_over(each):
                yield Checked(here / each, "debris", "left by an interrupted write")
        deep = len(here.parts) - len(root.parts) >= MAX_FOLDER_DEPTH
        folders[:] = [] if deep or here.name == DAMAGED else [each for each in folders if not is_left_over(each)]


def _verify_results(root: Path) -> Iterator[Checked]:
    empty = True
    for each in chain(attempts(root), debris(root)):
        empty = False
        yield each
    if empty:
        raise ResultsError(f"{shown(root)}: neither a results folder nor a cache, or an empty one")


def is_shared_cache(objects: Objects) -> bool:
    """The same for the objects at a URL."""
    try:
        listed = objects.list()
    except OSError as error:
        raise ResultsError(reason_of(error)) from None
    kinds = {kind for kind, job in JOBS.items() if job.cached}
    return any(name.partition("/")[0] in kinds for name in listed) and not any(
        name.rpartition("/")[2] == RECORD for name in listed
    )


def _verify_remote(url: str, read_data: bool) -> Iterator[Checked]:
    """As for a folder; no copy that is here already is used."""
    objects = Objects(url)
    if is_shared_cache(objects):
        for found in shared_faults(SharedCache(objects), read_data):
            if isinstance(found, str):
                yield Checked(objects.at(found), "ok")
            else:
                yield Checked(objects.at(found.run), found.kind, found.reason)
        return
    with temporary_folder() as folder:
        mirror = Mirror.of(objects, folder)
        mirror.refresh()
        empty = True
        for each in attempts(mirror.root):
            empty = False
            name = Path(each.path).relative_to(mirror.root).as_posix()
            yield replace(each, path=objects.at(name), reason=each.reason.replace(str(mirror.root), objects.url))
        listed = objects.list()
        for name in unfinished(listed):
            empty = False
            yield Checked(objects.at(name), "debris", "being written, or left by an interrupted write")
        for name in sorted({"/".join(name.split("/")[:3]) for name in listed if name.split("/")[1:2] == [DAMAGED]}):
            yield Checked(objects.at(name), "set aside", "damaged; delete it when nobody needs it")
    if empty:
        raise ResultsError(f"{shown(url)}: no results folder, or an empty one")


def _verify_cache(root: Path, read_data: bool) -> Iterator[Checked]:
    faulty = set()
    for each in Cache(root).faults(read_data):
        faulty.add(each.path)
        yield Checked(each.path, each.kind, within(each))
    for folder in _cached(root):
        if folder not in faulty:
            yield Checked(folder, "ok")


def within(fault: CacheFault) -> str:
    """What is wrong with a folder of a cache; a file is named by its path in the folder."""
    return fault.reason.removeprefix(f"{fault.path}: ").removeprefix(f"{fault.path}/")


def _cached(root: Path) -> list[Path]:
    """The folders of runs in a cache."""
    return [each for kind in _kinds(root) for each in sorted(kind.iterdir()) if RUN_ID.fullmatch(each.name)]


def _kinds(root: Path) -> list[Path]:
    return [root / kind for kind, job in sorted(JOBS.items()) if job.cached and (root / kind).is_dir()]
