"""The comparability key of a figure: two figures may stand in one table exactly if their keys are equal.

Comparisons, histories and tables of several people's results all take from here what must be equal. The text of a
figure, its tokens and its protocol are among the conditions of its measurement, the model's content, the method and the
engine are parts of the question; the class of the machine counts for what is timed or is a peak of memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.core.identity import digest
from harness.core.record import Measurement

MACHINE = "hardware"


@dataclass(frozen=True)
class Comparability:
    """What must be equal for another figure to be comparable, by name."""

    conditions: Mapping[str, str]

    @cached_property
    def key(self) -> str:
        return digest(dict(self.conditions))

    def differing(self, other: Comparability) -> Iterator[tuple[str, str | None, str | None]]:
        """Each condition that differs, with its value here and there; none exactly if the keys are equal."""
        for name in sorted(self.conditions.keys() | other.conditions.keys()):
            mine, theirs = self.conditions.get(name), other.conditions.get(name)
            if mine != theirs:
                yield name, mine, theirs


def conditions_of_measurement(measurement: Measurement) -> dict[str, str]:
    """What was measured and how: the metric's version, unit and kind of evidence, and its protocol."""
    protocol = {name: condition(value) for name, value in measurement.protocol.items() if value is not None}
    return {
        **protocol,
        "metric version": str(measurement.version),
        "unit": measurement.unit,
        "evidence": measurement.evidence,
    }


def conditions_of_items(measurement: Measurement) -> dict[str, str]:
    """The same, and which items were measured: values of different ones cannot be paired."""
    return conditions_of_measurement(measurement) | {"items": digest(sorted(measurement.item_ids))}


def condition(value: Any) -> str:
    """Words as they are, everything else as JSON, in one order of its names: true is not 1."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
