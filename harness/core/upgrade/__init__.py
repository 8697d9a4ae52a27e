"""Upgrades the raw JSON of older records to the current schema, one version at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harness.core.upgrade import labels, specs
from harness.errors import NewerRecordError, ResultsError

SCHEMA_VERSION = 3
FIRST_SEALED = 3
"""The first version whose records carry a seal; ``harness.storage.seal`` checks it on the JSON as it was written."""


MAX_VERSION = 1_000
"""No harness writes a higher one: what says so is no record of a newer harness, but damaged."""


def upgrade(raw: object, name: str) -> dict[str, Any]:
    """The raw JSON of a record, upgraded to SCHEMA_VERSION. The spec may be missing: the cache keeps bare outcomes.

    Raises ResultsError if there is no version, and NewerRecordError for a version that is newer than this harness.
    """
    if not isinstance(raw, dict):
        raise ResultsError(f"{name}: not a record")
    version = raw.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= MAX_VERSION:
        raise ResultsError(f"{name}: not a record: it has no schema_version")
    if version > SCHEMA_VERSION:
        raise NewerRecordError(
            f"{name}: written by a newer qharness (record schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}); upgrade qharness to read it"
        )
    for step in range(version, SCHEMA_VERSION):
        raw = UPGRADES[step](raw)
    return raw


def _to_2(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 2 has one job type per kind of run, and codes instead of sentences for labels and facts."""
    parts = {"spec": specs.upgraded, "outcome": labels.upgraded}
    found = {name: part(raw[name]) for name, part in parts.items() if isinstance(raw.get(name), dict)}
    return {**raw, **found, "schema_version": 2}


def _to_3(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 3 adds the seal of a record; an older record has none, and stays without."""
    return {**raw, "schema_version": 3}


UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_2, 2: _to_3}
"""For each version, the function that converts its raw JSON to the next version."""
