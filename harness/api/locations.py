"""Results where a user says they are: in a folder, or at a URL such as ``s3://bucket/results``."""

from __future__ import annotations

from pathlib import Path

from harness.host.machine import cache_folder
from harness.storage.anonymizer import Anonymizer
from harness.storage.objects import is_url, local_path
from harness.storage.reading import Contents, read_results, refuse_empty
from harness.storage.remote import open_store
from harness.storage.store import Store

MIRRORS = "remote"
"""The folder of the cache with copies of what was read at URLs."""


def open_results(location: str | Path, cache: Path | None = None, anonymizer: Anonymizer | None = None) -> Store:
    """The results at a place, to be written or read. Raises UsageError for a URL that cannot be used."""
    return open_store(location, (cache or cache_folder()) / MIRRORS, anonymizer)


def read_location(location: str | Path) -> Contents:
    """The records at a place. Raises ResultsError if there is nothing, or none can be read there."""
    if not is_url(location):
        return read_results(local_path(location))
    return refuse_empty(open_results(location).read(), str(location))


def name_of(location: str | Path) -> str:
    """The last part of where results are."""
    return str(location).rstrip("/").rpartition("/")[2] if is_url(location) else local_path(location).resolve().name
