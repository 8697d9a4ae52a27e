"""The highlight cards of a report: the variants that lead a table in one respect each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from harness.analysis.query import Limit, Query
from harness.analysis.recommend import certain_pick, use_of
from harness.analysis.summaries import Summaries
from harness.figures.divergence import KL
from harness.figures.figure import Figure
from harness.figures.quality import PERPLEXITY_CHANGE
from harness.figures.size import STORED_BYTES
from harness.figures.speed import DECODE
from harness.figures.table import Table
from harness.report.answer import sides

TOLERANCE = 0.05
"""The perplexity increase, as a fraction, up to which a variant is close; its whole interval must lie below."""


@dataclass(frozen=True)
class Highlight:
    title: str
    variant: str
    facts: tuple[str, ...]


def highlights(table: Table, summaries: Summaries | None = None) -> tuple[Highlight, ...]:
    """Closest to the baseline; smallest and fastest of those close to it. What has no winner is left out.

    Those that were found in the same rows before are taken from the ``summaries``.
    """
    close = (Limit(PERPLEXITY_CHANGE, TOLERANCE),)
    variants = replace(table, rows=tuple(row for row in table.rows if not (row.is_baseline or row.is_control)))
    found = [
        _highlight(variants, "Closest to the baseline", (), KL, summaries),
        _highlight(variants, f"Smallest within {TOLERANCE:.0%} of its perplexity", close, STORED_BYTES, summaries),
        _highlight(variants, f"Fastest decoding within {TOLERANCE:.0%}", close, DECODE, summaries),
    ]
    return tuple(each for each in found if each)


def _highlight(
    table: Table, title: str, limits: tuple[Limit, ...], objective: Figure[Any], summaries: Summaries | None
) -> Highlight | None:
    """None if no variant leads; the baseline and the controls are only the references for the others."""
    query = Query(limits, objective)
    best = certain_pick(table, query, summaries)
    return Highlight(title, best.row.label, tuple(sides(best.row, use_of(table, query)))) if best else None
