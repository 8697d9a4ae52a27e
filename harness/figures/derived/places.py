"""Where a measurement was taken: at a point of the grid, or at a level of load on a server."""

from __future__ import annotations

from harness.core.record import Measurement
from harness.figures.derived.speeds import point_of
from harness.figures.table import GridPoint, Load


def place_of(measured: Measurement) -> GridPoint | Load:
    return load_of(measured) if "arrival" in measured.protocol else point_of(measured)


def load_of(measured: Measurement) -> Load:
    """The level of load that a figure belongs to; without a level, it is of all of them."""
    protocol = measured.protocol
    level = protocol.get("level")
    return Load(
        str(protocol["arrival"]),
        str(protocol["prompts"]),
        str(protocol["answers"]),
        None if level is None else float(level),
    )
