"""What is checked of results, caches and bundles, and how each attempt is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.core.foreign import shown
from harness.errors import NewerRecordError
from harness.storage.reading import Attempt, attempt_folders, read_attempt

State = Literal["ok", "damaged", "newer", "not sealed", "set aside", "debris", "signed", "not compared"]


@dataclass(frozen=True)
class Checked:
    """One attempt, folder or file, by its path or URL, and what it is; ``reason`` is empty if it is ok."""

    path: Path | str
    state: State
    reason: str = ""


def attempts(root: Path) -> Iterator[Checked]:
    for folder in attempt_folders(root):
        try:
            yield _state(read_attempt(folder, root))
        except NewerRecordError as error:
            yield Checked(folder, "newer", str(error).removeprefix(f"{shown(folder)}: "))


def _state(attempt: Attempt) -> Checked:
    if attempt.damage is not None:
        extra = "; the figures are valid" if attempt.damage.log_only else ""
        return Checked(attempt.folder, "damaged", f"{attempt.damage.reason}{extra}")
    if attempt.seal is None:
        return Checked(attempt.folder, "not sealed", "of an older schema, which had no checksums")
    return Checked(attempt.folder, "ok")
