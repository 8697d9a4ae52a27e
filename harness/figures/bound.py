"""How close a speed comes to the machine's limit."""

from __future__ import annotations

from collections.abc import Callable

from harness.figures.figure import Figure, Note, Value, at_first_point
from harness.figures.formats import DECIMAL, PERCENT, significant, size_unit
from harness.figures.notes import interval_note
from harness.figures.table import GridPoint, SpeedBound, Table, VariantRow

GROUP = "Speed"
BINDS = {"bytes": "reading binds", "operations": "multiplying binds"}


def _points(table: Table) -> tuple[GridPoint, ...]:
    return table.grid


def _of(phase: str, pick: Callable[[SpeedBound], Value]) -> Callable[[VariantRow, GridPoint], Value]:
    return lambda row, point: pick(bound) if (bound := row.bound_at(point, phase)) else None


def _notes(bound: SpeedBound | None) -> tuple[Note, ...]:
    """The limiting resource, and a mark if layers are unpacked first."""
    if bound is None:
        return ()
    notes = (Note(f"of {significant(bound.tok_per_s)} tok/s, {BINDS[bound.binds]}"), *interval_note(bound.share))
    if not bound.dequantize_bytes:
        return notes
    return (*notes, Note(f"⚠ unpacks first: +{_decimal(bound.dequantize_bytes)} beside {_decimal(bound.read_bytes)}"))


def _decimal(size: float) -> str:
    unit = size_unit([int(size)], DECIMAL)
    return f"{significant(size / unit.bytes)} {unit.name}"


def _share(phase: str) -> Figure[GridPoint]:
    return Figure(
        f"{phase}_of_bound_fraction",
        GROUP,
        f"{phase.capitalize()} of the bound",
        "At {place}: measured speed over the machine's bound, the least time to read the weights and the cache or to "
        "multiply, whichever is longer. Above 100% the bound is wrong.",
        _of(phase, lambda bound: bound.share),
        "higher",
        PERCENT,
        _points,
        shown=at_first_point,
        interval=True,
        notes=lambda row, point: _notes(row.bound_at(point, phase)),
    )


def _part(phase: str, name: str, text: str, pick: Callable[[SpeedBound], Value]) -> Figure[GridPoint]:
    return Figure(f"{phase}_{name}", GROUP, "", f"At {{place}}: {text}.", _of(phase, pick), places=_points, shown=False)


def _figures(phase: str) -> tuple[Figure[GridPoint], ...]:
    return (
        _share(phase),
        _part(phase, "bound_tok_per_s", "the bound", lambda bound: bound.tok_per_s),
        _part(phase, "bound_by", "what binds, bytes or operations", lambda bound: bound.binds),
        _part(phase, "read_bytes", "bytes that a step must read", lambda bound: bound.read_bytes),
        _part(
            phase,
            "dequantize_bytes",
            "bytes that unpacking writes and reads",
            lambda bound: bound.dequantize_bytes,
        ),
        _part(phase, "operations", "operations of a step", lambda bound: bound.operations),
    )


FIGURES = (*_figures("prefill"), *_figures("decode"))
