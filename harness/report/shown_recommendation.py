"""A recommendation as readers see it, in words that need neither its table nor its records; and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.report.escape import markdown as escape

FOOT = (
    "?: the figure meets the limit, but its interval reaches beyond it. Pick: the share of random draws from all "
    "intervals in which a variant comes first."
)


@dataclass(frozen=True)
class ShownRecommendation:
    """The answer for one table: ``question`` and ``finding`` are the two halves of its sentence.

    ``warnings`` are the labels of the pick and of the table, ``place`` is what the figures refer to. ``admissible`` has
    a row of cells for each variant under the ``headings``, ``rejected`` each other variant and why. ``json_line`` is
    all of it for programs.
    """

    model: str
    question: str
    finding: str
    uncertain: tuple[str, ...]
    warnings: tuple[str, ...]
    place: str
    headings: tuple[str, ...]
    admissible: tuple[tuple[str, ...], ...]
    rejected: tuple[tuple[str, str], ...]
    json_line: str
    has_pick: bool
    is_unknown: bool
    holds: bool

    @property
    def sentence(self) -> str:
        return f"{self.question}: {self.finding}"


def markdown(recommendations: Iterable[ShownRecommendation]) -> str:
    """A section for each table; text from records is escaped and cannot leave its cell."""
    return "\n\n".join(part for shown in recommendations for part in _section(shown)) + "\n"


def _section(shown: ShownRecommendation) -> Iterable[str]:
    yield f"## {escape(shown.model)}"
    yield f"**{escape(shown.question)}:** {escape(shown.finding)}."
    yield f"{escape(shown.place)}."
    remarks = [*(f"Uncertain: {doubt}." for doubt in shown.uncertain), *(f"⚠ {each}." for each in shown.warnings)]
    if remarks:
        yield "\n".join(f"- {escape(remark)}" for remark in remarks)
    if shown.admissible:
        yield _grid([shown.headings, *shown.admissible], numbers=True)
        yield FOOT
    if shown.rejected:
        yield _grid([("rejected", "why"), *shown.rejected])


def _grid(rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    head, *body = ["| " + " | ".join(map(escape, row)) + " |" for row in rows]
    columns = len(rows[0])
    rule = ["---"] * columns if not numbers else ["---:", "---", *["---:"] * (columns - 2)]
    return "\n".join([head, f"| {' | '.join(rule)} |", *body])
