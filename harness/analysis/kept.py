"""What was derived from records before, found by the seals of these records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from harness.core.exact_text import as_text, builder
from harness.core.model import ModelRef
from harness.core.record import RunRecord
from harness.figures.derived.plausibility import Implausibility, implausible

T = TypeVar("T")


class KeptEntries:
    """``seals`` are the hashes of records, by ``id`` of the record; ``entries`` what was kept, each a line of text.

    ``used`` are the entries that were needed. What concerns a record without a seal is derived anew: one that was
    changed, merged from several folders or never saved.
    """

    def __init__(self, seals: Mapping[int, str], entries: Mapping[str, str]) -> None:
        self._seals, self._entries = seals, entries
        self.used: dict[str, str] = {}

    def seal(self, record: RunRecord) -> str:
        """Raises KeyError for a record without one."""
        return self._seals[id(record)]

    def key(self, about: str, *groups: Iterable[RunRecord]) -> str | None:
        """Names what is derived from groups of records, which are in order; None if one of them has no seal."""
        try:
            parts = [" ".join([self._seals[id(record)] for record in group]) for group in groups]
        except KeyError:
            return None
        return hashlib.sha256("\n".join([about, *parts]).encode()).hexdigest()

    def take(self, key: str | None, make: Callable[[], T], write: Callable[[T], str], read: Callable[[str], T]) -> T:
        """What was kept under a key, or what ``make`` returns, which is then kept."""
        if key is None:
            return make()
        known = self._entries.get(key)
        made = make() if known is None else read(known)
        self.used[key] = write(made) if known is None else known
        return made

    def implausible(self, model: ModelRef, quality: RunRecord | None) -> tuple[Implausibility, ...]:
        """As ``harness.figures.derived.plausibility.implausible``."""
        return self.take(
            None if quality is None else self.key(f"implausible {model.kind}", (quality,)),
            lambda: implausible(model, quality),
            as_text,
            lambda text: _implausibilities(json.loads(text)),
        )


_implausibilities: Callable[[Any], tuple[Implausibility, ...]] = builder(tuple[Implausibility, ...])

NOTHING: KeptEntries = KeptEntries({}, {})
"""Where nothing is kept: every record is without a seal."""
