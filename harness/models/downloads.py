"""Downloads that are deleted again: each is in a hub cache of its own, which no other command or tool reads or writes.

Its name carries its owner, so that what a killed command had downloaded is deleted with everything else that
interrupted commands left.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.core.owner import current_owner
from harness.errors import SourceError

FOLDER = "downloads"
"""Of the harness's cache."""


@contextmanager
def hub_cache(root: Path) -> Iterator[Path]:
    """A new hub cache below the harness's cache, deleted at the end. Raises SourceError if it cannot be written."""
    folder = root.absolute() / FOLDER / f".{secrets.token_hex(4)}.{current_owner()}.part"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise SourceError(f"cannot write to the cache: {error}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
