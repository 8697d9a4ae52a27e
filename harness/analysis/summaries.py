"""Rows of variants that were derived before from the same evidence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar

from harness.analysis.front_probability import front_probabilities
from harness.analysis.kept import NOTHING, KeptEntries
from harness.core.column import LazyColumn
from harness.core.exact_text import as_text, builder
from harness.core.identity import full_digest
from harness.core.record import Measurement, RunRecord
from harness.figures import summary
from harness.figures.derived.breakdown import Bin, by_position
from harness.figures.evidence import Evidence
from harness.figures.row import row
from harness.figures.table import VariantRow
from harness.plugins import plugin_figures
from harness.stats.estimate import Estimate, clustered_mean

T = TypeVar("T")


class Summaries(KeptEntries):
    """Rows as text, by the hash of their evidence; beside them, what takes long to derive for a whole table."""

    def __init__(self, seals: Mapping[int, str], entries: Mapping[str, str]) -> None:
        super().__init__(seals, entries)
        self._measurements: dict[int, tuple[Measurement, str]] = {}
        self._keys: dict[int, tuple[Evidence, str | None]] = {}

    def row(self, evidence: Evidence, label: str) -> summary.Derived:
        """As ``harness.figures.row.row``."""
        return self.take(
            self._evidence_key(evidence),
            lambda: row(evidence, label),
            summary.written,
            lambda text: summary.read(text, evidence, label),
        )

    def front_probabilities(self, rows: Sequence[VariantRow]) -> tuple[float | None, ...]:
        """As ``harness.analysis.front_probability.front_probabilities``."""
        key = self.rows_key("front", rows)
        return self.take(key, lambda: front_probabilities(rows), as_text, lambda text: tuple(json.loads(text)))

    def rows_key(self, about: str, rows: Sequence[VariantRow]) -> str | None:
        """Names what is derived from all rows of a table, in their order; None if one of them cannot be named."""
        keys = [self.row_key(each) for each in rows]
        return None if None in keys else full_digest([about, keys])

    def row_key(self, row: VariantRow) -> str | None:
        """Names what is derived from the evidence of a row; None if one of its records has no seal."""
        return self._evidence_key(row.evidence) if row.evidence else None

    def kept_row(self, key: str, evidence: Evidence) -> str | None:
        """The text of the row with this key, which is that of the evidence; None if it is not kept."""
        text = self._entries.get(key)
        if text is not None:
            self.used[key] = text
            self._keys[id(evidence)] = evidence, key
        return text

    def of_figures(self) -> KeptEntries:
        """Where what depends on the list of figures is kept.

        Nothing is kept beside figures of plugins: whether their code is still the same is not known.
        """
        return NOTHING if plugin_figures() else self

    def of_rows(self, about: str, rows: Sequence[VariantRow], make: Callable[[], T], read: Callable[[Any], T]) -> T:
        """What ``make`` derives from all rows of a table and ``about``, or the same as it was kept."""
        key = None if self.of_figures() is NOTHING else self.rows_key(about, rows)
        found: T = self.take(key, make, as_text, lambda text: read(json.loads(text)))
        return found

    def mean(self, floor: Measurement | None) -> Estimate | None:
        """The mean of a noise floor, if there is one."""
        if floor is None:
            return None
        key = full_digest(["mean", self._digest(floor)]) if self._seals else None
        found: Estimate = self.take(key, lambda: clustered_mean(floor), as_text, _estimate)
        return found

    def by_position(self, floor: Measurement, least_end: float) -> tuple[Bin, ...]:
        """A noise floor by position: see ``harness.figures.derived.breakdown.by_position``."""
        key = full_digest(["by position", least_end, self._digest(floor)]) if self._seals else None
        found: tuple[Bin, ...] = self.take(key, lambda: by_position(floor, least_end), as_text, _bins)
        return found

    def _evidence_key(self, evidence: Evidence) -> str | None:
        if id(evidence) not in self._keys:
            try:
                content = [self._content(each) for each in _parts_of(evidence)]
                key = hashlib.sha256("\n".join(content).encode()).hexdigest()
            except KeyError:  # a record without a seal
                key = None
            self._keys[id(evidence)] = evidence, key
        return self._keys[id(evidence)][1]

    def _content(self, value: Any) -> str:
        if isinstance(value, RunRecord):
            return self.seal(value)
        if isinstance(value, tuple):
            return " ".join([self.seal(each) for each in value])
        if isinstance(value, Measurement):  # a noise floor, which many variants share
            return self._digest(value)
        return str(value)

    def _digest(self, measurement: Measurement) -> str:
        if id(measurement) not in self._measurements:
            self._measurements[id(measurement)] = measurement, _digest(measurement)
        return self._measurements[id(measurement)][1]


_parts_of: Callable[[Evidence], tuple[Any, ...]] = attrgetter(*(each.name for each in fields(Evidence)))


def _digest(measurement: Measurement) -> str:
    content = {each.name: getattr(measurement, each.name) for each in fields(measurement)}
    return full_digest({name: _plain(value) for name, value in content.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, LazyColumn) and value.name:
        return value.name  # it need not be read
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _estimate(text: str) -> Estimate:
    found: Estimate = builder(Estimate)(json.loads(text))
    return found


def _bins(text: str) -> tuple[Bin, ...]:
    found: tuple[Bin, ...] = builder(tuple[Bin, ...])(json.loads(text))
    return found
