"""The highlight cards of a report: the variants that lead a table in one respect each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.analysis.query import Limit, Query
from harness.analysis.recommend import Leader, leader, use_of
from harness.analysis.summaries import Summaries
from harness.figures.divergence import KL
from harness.figures.figure import Figure
from harness.figures.quality import PERPLEXITY_CHANGE
from harness.figures.size import STORED_BYTES
from harness.figures.speed import DECODE
from harness.figures.table import Table
from harness.report.answer import listed, name, objective_of, sides

TOLERANCE = 0.05
"""The perplexity increase, as a fraction, up to which a variant is close; its whole interval must lie below."""


@dataclass(frozen=True)
class Highlight:
    """``ties`` names the variants that may lead as well; empty if there are none."""

    title: str
    variant: str
    facts: tuple[str, ...]
    ties: str


def highlights(table: Table, summaries: Summaries | None = None) -> tuple[Highlight, ...]:
    """Closest to the baseline; smallest and fastest of those close to it. What nothing was measured for is left out.

    Those that were found in the same rows before are taken from the ``summaries``.
    """
    close = (Limit(PERPLEXITY_CHANGE, TOLERANCE),)
    found = [
        _highlight(table, "Closest to the baseline", (), KL, summaries),
        _highlight(table, f"Smallest within {TOLERANCE:.0%} of its perplexity", close, STORED_BYTES, summaries),
        _highlight(table, f"Fastest decoding within {TOLERANCE:.0%}", close, DECODE, summaries),
    ]
    return tuple(each for each in found if each)


def _highlight(
    table: Table, title: str, limits: tuple[Limit, ...], objective: Figure[Any], summaries: Summaries | None
) -> Highlight | None:
    query = Query(limits, objective)
    found = leader(table, query, summaries)
    if found is None:
        return None
    row = found.row
    facts = ["no variant is better"] if row.is_baseline else sides(row, use_of(table, query))
    return Highlight(title, name(row), tuple(facts), _ties(found, objective))


def _ties(found: Leader, objective: Figure[Any]) -> str:
    if not found.rivals:
        return ""
    names = [*map(name, found.rivals), *([f"{found.more} more"] if found.more else [])]
    return f"{objective_of(objective).equal} {listed(names)}"
