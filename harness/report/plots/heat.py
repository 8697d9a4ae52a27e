"""Speeds at every batch size and prompt length relative to the baseline's, as a heat map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.figures.formats import BLANK, significant
from harness.figures.table import GridPoint, Speed, Table, VariantRow
from harness.report import escape
from harness.report.choice import chosen, left_out
from harness.report.plots.drawing import Drawing
from harness.report.plots.plot import Plot
from harness.report.plots.theme import SLOWER_TO_FASTER, map_paper
from harness.stats.estimate import Estimate

MOST_POINTS = 12


@dataclass(frozen=True)
class _Workload:
    """A column of the heat map: a phase at a point of the grid."""

    phase: str
    point: GridPoint
    pick: Callable[[Speed], Estimate | None]

    def ratio(self, row: VariantRow) -> Estimate | None:
        speed = row.speed_at(self.point)
        return self.pick(speed) if speed else None


def speed_grid(table: Table) -> Plot | None:
    """Multiples of the baseline's speed in the same session; None for a grid of one point or without a comparison."""
    points = table.grid[:MOST_POINTS]
    workloads = [
        *(_Workload("prefill", point, lambda speed: speed.prefill_ratio) for point in points),
        *(_Workload("decode", point, lambda speed: speed.decode_ratio) for point in points),
    ]
    timed = [row for row in table.rows if any(each.ratio(row) for each in workloads)]
    rows = chosen(timed)
    if len(points) < 2 or not rows:
        return None
    varying = _varying(points)
    ratios = [[each.ratio(row) for each in workloads] for row in rows]
    heads = [f"{each.phase}<br>{'<br>'.join(varying(each.point))}" for each in workloads]
    drawing = Drawing(map_paper(heads, [row.label for row in rows], row_px=26))
    _draw_map(drawing, rows, ratios, workloads)
    caption = (
        "Multiples of the baseline's speed at the same batch size and prompt length in the same session: above 1× "
        "(blue) is faster, below (orange) slower."
    )
    head = ("Variant", *(f"{each.phase} at {each.point.label}, ×" for each in workloads))
    lines = tuple((row.label, *(_ratio_text(ratio) for ratio in line)) for row, line in zip(rows, ratios, strict=True))
    caption += left_out(len(rows), len(timed))
    if len(table.grid) > MOST_POINTS:
        caption += f" The first {MOST_POINTS} of {len(table.grid)} points are shown."
    return Plot("speed-grid", "Speed over the grid", caption, head, lines, drawing.json())


def _draw_map(
    drawing: Drawing,
    rows: Sequence[VariantRow],
    ratios: Sequence[Sequence[Estimate | None]],
    workloads: Sequence[_Workload],
) -> None:
    """The colour scale is logarithmic: doubling and halving are equally far from the middle."""
    logs = [[math.log2(each.value) if each and each.value > 0 else None for each in line] for line in ratios]
    widest = max([abs(value) for line in logs for value in line if value is not None], default=1.0)
    drawing.heatmap(
        z=logs,
        zmid=0,
        zmin=-max(widest, 0.5),
        zmax=max(widest, 0.5),
        text=[[f"{significant(each.value)}×" if each else BLANK for each in line] for line in ratios],
        hovertext=[
            [
                f"{escape.plot(row.label)}<br>{each.phase}, {escape.plot(each.point.label)}: {_ratio_text(ratio)} ×"
                for each, ratio in zip(workloads, line, strict=True)
            ]
            for row, line in zip(rows, ratios, strict=True)
        ],
        colorscale=SLOWER_TO_FASTER,
    )


def _ratio_text(ratio: Estimate | None) -> str:
    if ratio is None:
        return BLANK
    if ratio.low is None or ratio.high is None:
        return significant(ratio.value)
    return f"{significant(ratio.value)} [{significant(ratio.low)}, {significant(ratio.high)}]"


def _varying(points: Sequence[GridPoint]) -> Callable[[GridPoint], list[str]]:
    """What distinguishes one point from the others, in words; what they all share is left out."""

    def parts(point: GridPoint) -> list[str]:
        return [escape.plot(part) for part in point.label.split(", ")]

    parts_of_each = [parts(point) for point in points]
    differing = [
        index for index in range(min(map(len, parts_of_each))) if len({each[index] for each in parts_of_each}) > 1
    ]
    return lambda point: [parts(point)[index] for index in differing]
