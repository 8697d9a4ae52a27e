"""The cache of prepared models, quantized artifacts and references, each named after the run that made it.

A folder appears complete, by one rename, together with the outcome of its run. Any folder may be deleted; the next
run makes it again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.core.record import Outcome
from harness.core.run import RunSpec
from harness.core.upgrade import SCHEMA_VERSION, upgrade
from harness.errors import HarnessError
from harness.storage.anonymizer import Anonymizer
from harness.storage.json_codec import decode, encode

OUTCOME = "outcome.json"


@dataclass(frozen=True)
class _Kept:
    """The content of ``outcome.json``."""

    schema_version: int
    outcome: Outcome


@dataclass(frozen=True)
class Cache:
    """One folder per run_id under a root."""

    root: Path

    def folder(self, kind: str, run_id: str) -> Path:
        return self.root / kind / run_id

    def needed(self, spec: RunSpec, kind: str) -> Path:
        """The folder of the run of that kind that a spec needs. Raises HarnessError if it is missing."""
        folder = self.folder(kind, spec.needs[kind])
        if not (folder / OUTCOME).exists():
            raise HarnessError(f"{folder}: missing from the cache; run the recipe again")
        return folder

    def outcome(self, spec: RunSpec) -> Outcome | None:
        """The outcome of the run that made the spec's folder, or None if there is no such folder."""
        path = self.folder(spec.kind, spec.run_id) / OUTCOME
        if not spec.job.cached or not path.exists():
            return None
        raw = json.loads(path.read_text(encoding="utf-8"))
        whole = raw if "schema_version" in raw else {"schema_version": 1, "outcome": raw}
        return decode(_Kept, upgrade(whole, str(path)), str(path)).outcome

    def remove(self, spec: RunSpec) -> None:
        """Deletes a run's folder, if there is one."""
        if spec.job.cached:
            shutil.rmtree(self.folder(spec.kind, spec.run_id), ignore_errors=True)

    def part(self, spec: RunSpec, token: str) -> Path:
        """The folder that a worker fills; the token is unique to the worker."""
        return self.folder(spec.kind, f".{spec.run_id}.{token}.part")

    @contextmanager
    def filling(self, spec: RunSpec, token: str) -> Iterator[Path]:
        """A folder to fill, without an outcome yet; deleted if filling it fails."""
        part = self.part(spec, token)
        part.mkdir(parents=True)
        try:
            yield part
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def publish(self, spec: RunSpec, part: Path, outcome: Outcome) -> None:
        """Adds the outcome to a filled folder and renames it. Keeps a folder that another sweep published meanwhile."""
        kept = Anonymizer.here(cache=self.root).outcome(outcome)
        (part / OUTCOME).write_text(encode(_Kept(SCHEMA_VERSION, kept)), encoding="utf-8")
        try:
            part.rename(self.folder(spec.kind, spec.run_id))
        except OSError:
            if self.outcome(spec) is None:
                raise
            shutil.rmtree(part)
