"""Figures of several sources on the terminal: a row for each that they measured alike, and what is incomparable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from harness.core.variant import shown_variant
from harness.figures.formats import significant
from harness.report.agreement import agreement_numbers
from harness.report.terminal import Rows, print_json, show, written

if TYPE_CHECKING:
    from rich.text import Text

    from harness.analysis.pooling import Pool, PooledFigure, SharedRuns, UnlikeFigures, WithdrawnRuns

STYLES = {"identical": "green", "agree within noise": "green", "heterogeneous": "bold red", "not tested": "yellow"}
MOST_CONDITIONS = 3
"""Differing conditions that a line shows."""


def show_pool(found: Pool, as_json: bool) -> None:
    if as_json:
        for figure in found.figures:
            print_json({"comparable": True, **asdict(figure), "agreement": figure.agreement})
        for other in found.unlike:
            print_json({"comparable": False, **asdict(other)})
        for shared in found.shared:
            print_json({"counted_once": True, **asdict(shared)})
        for gone in found.withdrawn:
            print_json({"withdrawn": True, **asdict(gone)})
        return
    show(lambda width, colour: written(_parts(found), width or 120, colour))


def _parts(found: Pool) -> Iterator[Text | Rows | str]:
    if found.figures:
        table = Rows((head, "left") for head in ("variant", "figure", "source: value", "agreement", "key"))
        for each in found.figures:
            values = "\n".join(f"{one.source}: {significant(one.value, 5)} ({one.n})" for one in each.sources)
            where = f"{each.metric}, {each.unit}" + (f"\n{each.where}" if each.where else "")
            variant = shown_variant(each.model, each.method, each.engine)
            table.add(variant, where, values, (_agreement(each), STYLES[each.agreement]), each.key)
        yield table
    else:
        yield "no figure was measured alike by two sources"
    yield from (_why(each) for each in found.unlike)
    yield from (_once(each) for each in found.shared)
    yield from (_gone(each) for each in found.withdrawn)


def _agreement(each: PooledFigure) -> str:
    numbers = agreement_numbers(each)
    between = "\n" if each.test else ": " if numbers else ""
    return f"{each.agreement}{between}{numbers}"


def _why(each: UnlikeFigures) -> str:
    shown = [f"{name}: {_short(mine)}, {_short(theirs)}" for name, mine, theirs in each.differing[:MOST_CONDITIONS]]
    rest = len(each.differing) - len(shown)
    more = f"; and {rest} more" if rest else ""
    variant = shown_variant(each.model, each.method, each.engine)
    return f"incomparable: {variant}, {each.metric}: {each.sources[0]}, {each.sources[1]}: {'; '.join(shown)}{more}"


def _once(each: SharedRuns) -> str:
    runs = f"{each.runs} of its {each.total} current runs"
    return f"counted once: {each.source}: {runs} {'is' if each.runs == 1 else 'are'} in {each.holder} too"


def _gone(each: WithdrawnRuns) -> str:
    runs = "1 of its runs was" if each.runs == 1 else f"{each.runs} of its runs were"
    return f"not counted: {each.source}: {runs} withdrawn in {each.by}"


def _short(value: str | None) -> str:
    return "none" if value is None else value if len(value) <= 60 else f"{value[:60]}…"
