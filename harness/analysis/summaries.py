"""Rows of variants that were derived before from the same evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from harness.core.identity import full_digest
from harness.core.record import Measurement, RunRecord
from harness.figures import summary
from harness.figures.evidence import Evidence
from harness.figures.row import row


class Summaries:
    """``seals`` are the hashes of records by their ``key``; ``kept`` are rows as text, by the hash of their evidence.

    ``used`` are those that were needed. A variant with a record that has no seal is derived anew.
    """

    def __init__(self, seals: Mapping[tuple[str, str, str], str], kept: Mapping[str, str]) -> None:
        self._seals, self._kept = seals, kept
        self._measurements: dict[int, tuple[Measurement, str]] = {}
        self.used: dict[str, str] = {}

    @property
    def changed(self) -> bool:
        """Whether what was used differs from what was kept."""
        return self.used.keys() != self._kept.keys()

    def row(self, evidence: Evidence, label: str) -> summary.Derived:
        """As ``harness.figures.row.row``."""
        key = self._key(evidence)
        known = None if key is None else self._kept.get(key)
        derived = row(evidence, label) if known is None else summary.read(known, evidence, label)
        if key is not None:
            self.used[key] = known or summary.written(derived)
        return derived

    def _key(self, evidence: Evidence) -> str | None:
        try:
            return full_digest({each.name: self._content(getattr(evidence, each.name)) for each in fields(evidence)})
        except KeyError:  # a record without a seal
            return None

    def _content(self, value: Any) -> Any:
        if isinstance(value, RunRecord):
            return self._seals[value.key]
        if isinstance(value, tuple):
            return [self._content(each) for each in value]
        if isinstance(value, Measurement):  # a noise floor, which many variants share
            if id(value) not in self._measurements:
                self._measurements[id(value)] = value, _digest(value)
            return self._measurements[id(value)][1]
        return value


def _digest(measurement: Measurement) -> str:
    content = {each.name: getattr(measurement, each.name) for each in fields(measurement)}
    return full_digest(
        {
            name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for name, value in content.items()
            if name != "protocol"
        }
        | {"protocol": dict(measurement.protocol)}
    )
