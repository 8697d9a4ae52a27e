"""A hub cache as huggingface_hub leaves it: links in a snapshot to files that are named by their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from harness.storage.checksums import git_blob


def fill_hub_cache(cache: Path, model: str, commit: str, files: Path) -> Path:
    """Puts the files of a folder into a cache as a model's at a commit; returns the snapshot's folder."""
    repository = cache / f"models--{model.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in files.iterdir():
        content = path.read_bytes()
        is_large = path.suffix == ".safetensors"
        blob = blobs / (hashlib.sha256(content).hexdigest() if is_large else git_blob(path))
        blob.write_bytes(content)
        (snapshot / path.name).symlink_to(blob)
    return snapshot
