"""Results where a user says they are: in a folder, at a URL such as ``s3://bucket/results``, or in a bundle."""

from __future__ import annotations

from pathlib import Path

from harness.core.foreign import shown
from harness.errors import UsageError
from harness.host.machine import cache_folder
from harness.storage.anonymizer import Anonymizer
from harness.storage.bundle import is_bundle, unpacked
from harness.storage.objects import is_url, local_path
from harness.storage.reading import Contents, read_results, refuse_empty
from harness.storage.remote import open_store
from harness.storage.store import Store

MIRRORS = "remote"
"""The folder of the cache with copies of what was read at URLs."""
BUNDLES = "bundles"
"""The folder of the cache with what bundles hold, by their hash."""


def refuse_bundle(location: str | Path) -> None:
    """Raises UsageError for a bundle, into which nothing is written."""
    if is_bundle(location):
        raise UsageError(f"{shown(str(location))}: a bundle, which is only read; name a results folder")


def open_results(location: str | Path, cache: Path | None = None, anonymizer: Anonymizer | None = None) -> Store:
    """The results at a place, to be written or read. Raises UsageError for a bundle, and a URL that cannot be used."""
    refuse_bundle(location)
    return open_store(location, (cache or cache_folder()) / MIRRORS, anonymizer)


def open_source(location: str | Path) -> Store:
    """The results at a place, to be read; of a bundle those in a copy.

    Raises UsageError for a URL that cannot be used, and ResultsError for a bundle that is not as it was written.
    """
    if not is_bundle(location):
        return open_results(location)
    return Store(unpacked(local_path(location), cache_folder() / BUNDLES))


def read_location(location: str | Path) -> Contents:
    """The records at a place. Raises ResultsError if there is nothing, or none can be read there."""
    if is_bundle(location):
        return read_results(open_source(location).root)
    if not is_url(location):
        return read_results(local_path(location))
    return refuse_empty(open_results(location).read(), str(location))


def name_of(location: str | Path) -> str:
    """The last part of where results are."""
    return str(location).rstrip("/").rpartition("/")[2] if is_url(location) else local_path(location).resolve().name
