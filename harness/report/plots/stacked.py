"""Memory as stacked bars: stored bytes by role, and the memory for generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.figures.formats import BINARY, DECIMAL, SizeUnit, significant, size_unit
from harness.figures.table import GridPoint, Table, VariantRow
from harness.report import escape
from harness.report.choice import chosen, left_out
from harness.report.plots.drawing import Drawing
from harness.report.plots.plot import Plot
from harness.report.plots.theme import BLUE, GREEN, GREY, ORANGE, PARTS, PATTERNS, paper, ruler, variant_axis


@dataclass(frozen=True)
class _Part:
    """One colour of the bars; its pattern distinguishes it from its neighbours without colour."""

    name: str
    colour: str
    bytes: Callable[[VariantRow], float]


def stored_memory(table: Table) -> Plot | None:
    """Stored bytes by role and part, one bar per variant, in the order of the table."""
    rows = [row for row in table.rows if row.stored_bytes]
    present = dict.fromkeys((part.role, part.part) for row in rows for part in row.stored if part.bytes)
    ordered = [part for part in PARTS if part in present] + [part for part in present if part not in PARTS]
    parts = [_Part(" ".join(part), PARTS.get(part, GREY), _stored(part)) for part in ordered]
    caption = "Actual bytes as stored: packed values, their scales and zero points, and unquantized parts."
    return _stacked("stored-bytes", "Stored weights", caption, rows, parts, DECIMAL)


def running_memory(table: Table) -> Plot | None:
    """The memory for decoding at the table's first grid point, by its measured parts."""
    rows = [row for row in table.rows if row.footprint]
    if not rows or not table.grid:
        return None
    point = table.grid[0]
    parts = [
        _Part("before generating", BLUE, lambda row: row.footprint.base_bytes if row.footprint else 0),
        _Part("key-value cache", ORANGE, lambda row: _cache(row, point)),
        _Part("workspace", GREEN, lambda row: _workspace(row, point)),
    ]
    caption = (
        f"At {point.label}: the loaded process, the key-value cache of all its tokens, and the larger workspace of "
        "prefill and decode."
    )
    return _stacked("running-memory", "Memory while running", caption, rows, parts, BINARY)


def _stacked(
    name: str,
    title: str,
    caption: str,
    measured: Sequence[VariantRow],
    parts: Sequence[_Part],
    units: tuple[SizeUnit, ...],
) -> Plot | None:
    rows = chosen(measured)
    if not rows or not parts:
        return None
    totals = [sum(part.bytes(row) for part in parts) for row in rows]
    unit = size_unit((int(total) for total in totals), units)
    layout = paper(height_px=100 + 26 * len(rows), top_px=48) | {
        "barmode": "stack",
        "bargap": 0.35,
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "xaxis": ruler(unit.name, (0, max(totals) / unit.bytes * 1.16)),
        "yaxis": variant_axis([row.label for row in rows]),
    }
    drawing = Drawing(layout)
    for number, part in enumerate(parts):
        _draw_bars(drawing, rows, part, number, unit)
    for index, total in enumerate(totals):
        text = f"{significant(total / unit.bytes)} {unit.name}"
        drawing.note(text, x=total / unit.bytes, y=index, xanchor="left", xshift=6)
    lines = tuple(
        (row.label, significant(total / unit.bytes), *(significant(part.bytes(row) / unit.bytes) for part in parts))
        for row, total in zip(rows, totals, strict=True)
    )
    head = ("Variant", f"total, {unit.name}", *(f"{part.name}, {unit.name}" for part in parts))
    return Plot(name, title, caption + left_out(len(rows), len(measured)), head, lines, drawing.json())


def _draw_bars(drawing: Drawing, rows: Sequence[VariantRow], part: _Part, number: int, unit: SizeUnit) -> None:
    name = escape.plot(part.name)
    sizes = [part.bytes(row) / unit.bytes for row in rows]
    drawing.trace(
        "bar",
        y=list(range(len(rows))),
        x=sizes,
        orientation="h",
        name=name,
        marker={
            "color": part.colour,
            "pattern": {"shape": PATTERNS[number % len(PATTERNS)], "size": 6, "solidity": 0.2, "fillmode": "overlay"},
        },
        hovertext=[
            f"{escape.plot(row.label)}: {name} {significant(size)} {unit.name}"
            for row, size in zip(rows, sizes, strict=True)
        ],
        hoverinfo="text",
    )


def _stored(part: tuple[str, str]) -> Callable[[VariantRow], float]:
    return lambda row: row.stored_part(*part) or 0


def _cache(row: VariantRow, point: GridPoint) -> float:
    tokens = point.prompt_tokens + point.new_tokens
    return row.footprint.kv_bytes_per_token * point.batch_size * tokens if row.footprint else 0


def _workspace(row: VariantRow, point: GridPoint) -> float:
    if row.footprint is None:
        return 0
    read, written = point.prompt_tokens, point.prompt_tokens + point.new_tokens
    prefill = row.footprint.prefill.bytes(point.batch_size, read)
    return max(prefill, row.footprint.decode.bytes(point.batch_size, written), 0)
