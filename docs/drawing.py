"""Draws rooms in layers, and arrows between them, as SVG: in the reader's colours, without a script or a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

Pair = tuple[str, str]

WIDTH, MARGIN = 960, 16
BOX_HEIGHT, LAYER_HEIGHT = 32, 92
LETTER, PADDING = 8.4, 26
PORT_GAP = 16
COUNTS = (16, 30)
"""How far below a room the counts of its arrows stand, in turns: above the next layer, and beside each other."""
STYLE = """\
svg { --paper: #fff; --ink: #1b2127; --soft: #5b6570; --line: #9db4c6; --wash: #f5f7f9 }
@media (prefers-color-scheme: dark) {
  svg { --paper: #14181c; --ink: #e4e8ec; --soft: #9aa5b0; --line: #4b6478; --wash: #1b2126 }
}
text { font: 14px system-ui, sans-serif; text-anchor: middle; fill: var(--ink) }
.paper { fill: var(--paper) }
.room { fill: var(--wash); stroke: var(--line) }
.arrow { fill: none; stroke: var(--line); stroke-width: 1.3 } .named { stroke-dasharray: 4 4 }
.head { fill: var(--line) }
.count { font-size: 11px; fill: var(--soft); stroke: var(--paper); stroke-width: 4px; paint-order: stroke }"""


def layered(title: str, layers: Sequence[Sequence[str]], arrows: Mapping[Pair, int], named: Sequence[Pair]) -> str:
    """Rooms by layer, the first on top; arrows with their counts, and dotted ones to what is only named."""
    places = {
        room: (x, MARGIN + number * LAYER_HEIGHT) for number, layer in enumerate(layers) for room, x in _row(layer)
    }
    pairs = sorted([*arrows, *named])
    starts, ends = _ports(pairs, places, 0), _ports(pairs, places, 1)
    lines, words, leaving = [], [], Counter[str]()
    for pair in pairs:
        (x, y), (to_x, to_y) = places[pair[0]], places[pair[1]]
        x, y, to_x, to_y = starts[pair], y + BOX_HEIGHT, ends[pair], to_y - 6
        bend = min((to_y - y) / 2, LAYER_HEIGHT / 2)
        kind = "arrow" if pair in arrows else "arrow named"
        lines.append(
            f'<path class="{kind}" marker-end="url(#head)" d="M{x:.0f} {y} C{x:.0f} {y + bend:.0f} {to_x:.0f} '
            f'{to_y - bend:.0f} {to_x:.0f} {to_y}"/>'
        )
        if pair in arrows:
            down = y + COUNTS[leaving[pair[0]] % len(COUNTS)]
            leaving[pair[0]] += 1
            at = f'x="{_across(x, y, to_x, to_y, bend, down):.0f}" y="{down + 4}"'
            words.append(f'<text class="count" {at}>{arrows[pair]}</text>')
    boxes = [
        f'<rect class="room" x="{x - _width(room) / 2:.0f}" y="{y}" width="{_width(room):.0f}" height="{BOX_HEIGHT}" '
        f'rx="6"/><text x="{x:.0f}" y="{y + 21}">{escape(room)}</text>'
        for room, (x, y) in places.items()
    ]
    height = 2 * MARGIN + (len(layers) - 1) * LAYER_HEIGHT + BOX_HEIGHT
    head = '<marker id="head" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{STYLE}\n</style>",
            f'<defs>{head}<path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
            f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
            *lines,
            *boxes,
            *words,
            "</svg>\n",
        ]
    )


def _across(x: float, y: float, to_x: float, to_y: float, bend: float, height: float) -> float:
    """Where an arrow passes a height: its curve goes downwards only, so halving finds it."""
    low, high = 0.0, 1.0
    for _ in range(20):
        t = (low + high) / 2
        here = (1 - t) ** 3 * y + 3 * (1 - t) ** 2 * t * (y + bend) + 3 * (1 - t) * t**2 * (to_y - bend) + t**3 * to_y
        low, high = (t, high) if here < height else (low, t)
    t = (low + high) / 2
    return (1 - t) ** 2 * (1 + 2 * t) * x + t**2 * (3 - 2 * t) * to_x


def _row(layer: Sequence[str]) -> list[tuple[str, float]]:
    """Each room with the middle of its box: the boxes have equal gaps, and a lone one stands in the middle."""
    gap = (WIDTH - sum(map(_width, layer))) / (len(layer) + 1)
    found, x = [], gap
    for room in layer:
        found.append((room, x + _width(room) / 2))
        x += _width(room) + gap
    return found


def _width(room: str) -> float:
    return PADDING + LETTER * len(room)


def _ports(pairs: Sequence[Pair], places: Mapping[str, tuple[float, float]], end: int) -> dict[Pair, float]:
    """Where each arrow leaves its first room, or meets its second: side by side, in the order of the other ends."""
    found = {}
    for room, (x, _) in places.items():
        own = sorted((pair for pair in pairs if pair[end] == room), key=lambda pair: places[pair[1 - end]][0])
        gap = min(PORT_GAP, (_width(room) - 12) / max(len(own), 1))
        found |= {pair: x + (number - (len(own) - 1) / 2) * gap for number, pair in enumerate(own)}
    return found
