"""Records of a harness that is yet to be written."""

from __future__ import annotations

import json
from pathlib import Path

from harness.core.upgrade import SCHEMA_VERSION
from harness.storage.seal import FileSeal, seal


def make_newer(path: Path, version: int = SCHEMA_VERSION + 1) -> None:
    """Turns a ``record.json`` into one of a newer schema, with a seal that holds."""
    raw = {**json.loads(path.read_text()), "schema_version": version}
    files = {name: FileSeal(**each) for name, each in raw["seal"]["files"].items()}
    path.write_text(json.dumps(seal(raw, files)))
