"""What of a figure on another engine is that engine's own: in a reading's words, and the places of its columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from harness.figures.ask import Reading
from harness.figures.figure import WHOLE, Whole
from harness.figures.table import Table, VariantRow


def with_engine_share(found: Reading, row: VariantRow, own: str | None) -> Reading:
    """The reading, naming ``own``, the engine's part of it with its unit; unchanged if that is not known or is none."""
    if found.estimate is None:
        return found
    if row.is_control:
        return replace(found, includes="all of it the engine's own")
    return replace(found, includes=f"the engine's own {own} included") if own else found


def where_any(pick: Callable[[VariantRow], object]) -> Callable[[Table], tuple[Whole, ...]]:
    """One column in tables with a row that has the figure, otherwise none."""
    return lambda table: (WHOLE,) if any(pick(row) for row in table.rows) else ()
