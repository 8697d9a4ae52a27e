"""Heat maps of a mixture of experts: calibration tokens by layer and expert, agreeing routers by variant and layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.figures.derived.experts import BlockAgreement, ExpertLoad
from harness.figures.formats import PERCENT, significant
from harness.figures.table import Table, VariantRow
from harness.report import escape
from harness.report.choice import chosen, left_out
from harness.report.plots.drawing import Drawing
from harness.report.plots.plot import Plot
from harness.report.plots.theme import PURPLE, SLOWER_TO_FASTER, VERMILION, paper, variant_axis

LIGHT = "#F7F7F7"
LOW_TO_FULL = ((0, VERMILION), (1, LIGHT))
NONE_TO_MUCH = ((0, LIGHT), (1, VERMILION))
MOST_OCTAVES = 4
"""Loads beyond a sixteenth and sixteen times the even share have the same colour."""
MOST_WRITTEN = 16
"""Cells side by side that have room for a number."""
MOST_SPACED = 32
"""Cells side by side that have room for a gap between them."""
MOST_TICKS = 24
LEAST_OVERLAP, LEAST_NAT, MOST_NAT = 0.5, 1e-6, 1.0
"""The ends of the colours are the same in every report, so that small differences look small."""
LOADS, OVERLAPS, DIVERGENCES = "expert-tokens", "router-overlap", "router-kl"


def expert_plots(table: Table) -> tuple[Plot, ...]:
    """The heat maps that the table has figures for; none of a dense model."""
    drawn = (_loads(table), *(_by_layer(table, each) for each in ROUTER_MAPS))
    return tuple(plot for plot in drawn if plot)


def _loads(table: Table) -> Plot | None:
    """The calibration tokens of each expert, of the first calibrated variant: a sweep has one calibration set."""
    audited = [(row, row.experts) for row in table.rows if row.experts and row.experts.loads]
    if not audited:
        return None
    row, audit = audited[0]
    loads = audit.loads
    widest = max(len(load.tokens) for load in loads)
    layout = paper(height_px=110 + max(14, min(26, 900 // len(loads))) * len(loads)) | {
        "xaxis": {"title": {"text": "expert", "standoff": 8}, "showgrid": False, "zeroline": False},
        "yaxis": _layers([load.block for load in loads]),
    }
    drawing = Drawing(layout)
    cells: dict[str, object] = {
        "text": [[_load_text(count, widest) for count in load.tokens] for load in loads],
        "hovertext": [
            [
                f"{escape.plot(load.block)}, expert {number}: {count:,} tokens"
                for number, count in enumerate(load.tokens)
            ]
            for load in loads
        ],
        "xgap": 1 if widest <= MOST_SPACED else 0,
        "ygap": 1,
    }
    octaves = [_padded([_octaves(count, load) if count else None for count in load.tokens], widest) for load in loads]
    drawing.heatmap(z=octaves, zmin=-MOST_OCTAVES, zmax=MOST_OCTAVES, colorscale=SLOWER_TO_FASTER, **cells)
    if audit.dead:
        none = [_padded([None if count else 1.0 for count in load.tokens], widest) for load in loads]
        drawing.heatmap(z=none, zmin=0, zmax=1, colorscale=((0, PURPLE), (1, PURPLE)), **cells)
    experts = sum(len(load.tokens) for load in loads)
    caption = (
        f"Tokens of the calibration set that each of {experts:,} experts saw, by the unquantized model's own routers, "
        "relative to an even share of its layer: orange is fewer, blue more, purple (✕) none. "
        f"{audit.dead:,} saw none, {audit.starved:,} more fewer than {audit.starved_tokens}."
    )
    if any(other.loads != loads for _, other in audited):
        caption += f" This is the calibration set of {row.label}; other variants have others."
    head = ("Layer", "even share", "least", "median", "most", "experts that saw none")
    lines = tuple(_load_line(load) for load in loads)
    return Plot(LOADS, "Calibration tokens per expert", caption, head, lines, drawing.json())


def _octaves(count: int, load: ExpertLoad) -> float:
    """The base-two logarithm of the load relative to an even one, within what the colours show."""
    ratio = count * len(load.tokens) / sum(load.tokens)
    return max(-MOST_OCTAVES, min(MOST_OCTAVES, math.log2(ratio)))


def _load_text(count: int, widest: int) -> str:
    if count == 0:
        return "✕"
    return significant(float(count), 2) if widest <= MOST_WRITTEN else ""


def _load_line(load: ExpertLoad) -> tuple[str, ...]:
    ordered = sorted(load.tokens)
    even = sum(ordered) / len(ordered)
    dead = ", ".join(str(number) for number, count in enumerate(load.tokens) if count == 0)
    figures = (even, ordered[0], ordered[len(ordered) // 2], ordered[-1])
    return (load.block, *(f"{figure:,.0f}" for figure in figures), dead or "none")


@dataclass(frozen=True)
class _RouterMap:
    """What a map shows of each layer: how a value is written, and its place between the ends of the colours."""

    name: str
    title: str
    caption: str
    pick: Callable[[BlockAgreement], float | None]
    write: Callable[[float], str]
    place: Callable[[float], float]
    colours: Sequence[tuple[float, str]]
    ends: tuple[float, float]


ROUTER_MAPS = (
    _RouterMap(
        OVERLAPS,
        "Experts that routers choose as the baseline's do",
        "Share of a token's experts that the baseline's router chooses too, mean over the scored tokens, by layer. "
        "Darker: fewer in common, darkest from 50% down.",
        lambda block: block.overlap,
        lambda value: f"{PERCENT.text(value)}%",
        lambda value: value,
        LOW_TO_FULL,
        (LEAST_OVERLAP, 1.0),
    ),
    _RouterMap(
        DIVERGENCES,
        "KL of the routers' distributions",
        "KL(baseline ‖ variant) of the routers' distributions over all experts in nats, mean over the scored tokens, "
        "by layer. Darker: further apart, logarithmically from 10⁻⁶ to 1.",
        lambda block: block.kl,
        significant,
        lambda value: math.log10(max(value, LEAST_NAT)),
        NONE_TO_MUCH,
        (math.log10(LEAST_NAT), math.log10(MOST_NAT)),
    ),
)


def _by_layer(table: Table, drawn: _RouterMap) -> Plot | None:
    """Variants by layers; the baseline, which agrees with itself, is left out."""
    compared = [row for row in table.rows if _values(row, drawn) and not row.is_reference]
    rows = chosen(compared)
    values = [_values(row, drawn) for row in rows]
    blocks = list(dict.fromkeys(block for line in values for block in line))
    if not blocks:
        return None
    cells = [tuple(drawn.write(line[block]) if block in line else "—" for block in blocks) for line in values]
    written = len(blocks) <= MOST_WRITTEN
    layout = paper(height_px=130 + 26 * len(rows)) | {
        "xaxis": _layers(blocks) | {"title": {"text": "layer", "standoff": 8}, "autorange": True},
        "yaxis": variant_axis([row.label for row in rows]) | {"showgrid": False},
    }
    drawing = Drawing(layout)
    drawing.heatmap(
        z=[[drawn.place(line[block]) if block in line else None for block in blocks] for line in values],
        zmin=drawn.ends[0],
        zmax=drawn.ends[1],
        text=[[drawn.write(line[block]) if written and block in line else "" for block in blocks] for line in values],
        hovertext=[
            [
                f"{escape.plot(row.label)}<br>{escape.plot(block)}: {cell}"
                for block, cell in zip(blocks, line, strict=True)
            ]
            for row, line in zip(rows, cells, strict=True)
        ],
        colorscale=drawn.colours,
    )
    head = ("Variant", *blocks)
    lines = tuple((row.label, *line) for row, line in zip(rows, cells, strict=True))
    caption = drawn.caption + left_out(len(rows), len(compared))
    return Plot(drawn.name, drawn.title, caption, head, lines, drawing.json())


def _values(row: VariantRow, drawn: _RouterMap) -> dict[str, float]:
    """What the map shows of a variant, by block; nothing of what was not measured."""
    found = {each.block: drawn.pick(each) for each in (row.experts.blocks if row.experts else ())}
    return {block: value for block, value in found.items() if value is not None}


def _layers(blocks: Sequence[str]) -> dict[str, object]:
    """An axis of layers by their numbers, few enough to read; the first is at the top."""
    step = -(-len(blocks) // MOST_TICKS)
    places = list(range(0, len(blocks), step))
    return {
        "title": {"text": "layer", "standoff": 8},
        "tickvals": places,
        "ticktext": [_number(blocks[place]) for place in places],
        "autorange": "reversed",
        "showgrid": False,
        "zeroline": False,
    }


def _number(block: str) -> str:
    found = re.search(r"\.(\d+)", block)
    return found[1] if found else escape.plot(block)


def _padded(values: list[float | None], length: int) -> list[float | None]:
    return [*values, *[None] * (length - len(values))]
