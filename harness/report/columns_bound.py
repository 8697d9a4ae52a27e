"""The columns that hold a speed against what the machine allows."""

from __future__ import annotations

from collections.abc import Callable

from harness.figures.formats import DECIMAL, significant, size_unit
from harness.figures.table import Bound, GridPoint, Table, VariantRow
from harness.report.column import Column, Value, interval_note
from harness.report.columns_run import point_name

BINDS = {"bytes": "reading binds", "operations": "multiplying binds"}


def all_bound_columns(table: Table) -> tuple[Column, ...]:
    return tuple(each for point in table.grid for each in bound_columns(point, headline=point == table.grid[0]))


def bound_columns(point: GridPoint, headline: bool) -> tuple[Column, ...]:
    """Prefill and decode at one grid point; only the headline's are shown in the main table."""
    return (*_phase_columns("prefill", point, headline), *_phase_columns("decode", point, headline))


def rates_told(table: Table) -> str | None:
    """What the machine did at its best, in words: the figures behind the bounds."""
    if table.rates is None:
        return None
    largest, slowest = table.rates.bandwidth[-1]
    smallest, _ = table.rates.bandwidth[0]
    fastest = max(bandwidth for _, bandwidth in table.rates.bandwidth)
    products = ", ".join(f"{significant(rate / 10**9)} in {dtype}" for dtype, rate in table.rates.matmul)
    return (
        f"Bounds by the machine's own speed: {significant(slowest / 10**9)} GB/s over {_binary(largest)}, at most "
        f"{significant(fastest / 10**9)} from {_binary(smallest)} on; 10⁹ operations per second: {products}."
    )


def _phase_columns(phase: str, point: GridPoint, headline: bool) -> tuple[Column, ...]:
    where = f"{phase}_{{}}_{point_name(point)}"
    said = f"At {point.label}"

    def plain(name: str, text: str, pick: Callable[[Bound], Value]) -> Column:
        return Column(where.format(name), "Speed", "", "", f"{said}: {text}.", _of(point, phase, pick), shown=False)

    return (
        Column(
            where.format("of_bound_fraction"),
            "Speed",
            f"{phase.capitalize()} of the bound",
            "%",
            f"{said}: measured speed over the machine's bound, the least time to read the weights and the cache or to "
            "multiply, whichever is longer. Above 100% the bound is wrong.",
            _of(point, phase, lambda bound: bound.share),
            factor=100,
            shown=headline,
            interval=True,
            notes=lambda row: _notes(row.bound_at(point, phase)),
        ),
        plain("bound_tok_per_s", "the bound", lambda bound: bound.tok_per_s),
        plain("bound_by", "what binds, bytes or operations", lambda bound: bound.binds),
        plain("read_bytes", "bytes that a step must read", lambda bound: bound.read_bytes),
        plain("dequantize_bytes", "bytes that unpacking writes and reads", lambda bound: bound.dequantize_bytes),
        plain("operations", "operations of a step", lambda bound: bound.operations),
    )


def _notes(bound: Bound | None) -> tuple[str, ...]:
    """What binds, and a mark where layers unpack first."""
    if bound is None:
        return ()
    told = (f"of {significant(bound.tok_per_s)} tok/s, {BINDS[bound.binds]}", *interval_note(bound.share))
    if not bound.dequantize_bytes:
        return told
    return (*told, f"⚠ unpacks first: +{_decimal(bound.dequantize_bytes)} beside {_decimal(bound.read_bytes)}")


def _of(point: GridPoint, phase: str, pick: Callable[[Bound], Value]) -> Callable[[VariantRow], Value]:
    return lambda row: pick(bound) if (bound := row.bound_at(point, phase)) else None


def _decimal(size: float) -> str:
    unit = size_unit([int(size)], DECIMAL)
    return f"{significant(size / unit.bytes)} {unit.name}"


def _binary(size: int) -> str:
    return f"{size / 2**30:g} GiB" if size >= 2**30 else f"{size / 2**20:g} MiB"
