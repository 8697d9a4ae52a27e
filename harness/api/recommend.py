"""``harness.recommend``: which variant of a results folder to ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.analysis.choice import Recommendation
from harness.analysis.query import Query, count, parse_limits, parse_objective
from harness.api.results import NamedRecords, kept_answer, read_folder
from harness.core.exact_text import as_text
from harness.core.record import Damaged, RunRecord
from harness.figures.ask import Option, positive
from harness.report.shown_recommendation import ShownRecommendation
from harness.storage.summaries import RECOMMENDATION


@dataclass(frozen=True)
class RecommendRequest:
    """What a user asks, as written: the options of ``qharness recommend``, and the keywords of ``recommend``.

    ``limits`` are by keyword, such as ``max_memory``; None sets no limit.
    """

    limits: Mapping[str, Option] = field(default_factory=dict)
    minimize: str | None = None
    maximize: str | None = None
    at: str | None = None
    at_load: Option = None
    context: int | None = None
    batch: int | None = None
    allow_labelled: bool = False

    def query(self) -> Query:
        """The same, checked. Raises UsageError for an invalid value or name."""
        return Query(
            parse_limits(self.limits),
            parse_objective(self.minimize, self.maximize),
            self.at,
            count("context", self.context),
            count("batch", self.batch),
            self.allow_labelled,
            None if self.at_load is None else positive("at-load", self.at_load),
        )


def recommend(
    results: str | Path | Sequence[RunRecord],
    *,
    minimize: str | None = None,
    maximize: str | None = None,
    at: str | None = None,
    at_load: Option = None,
    context: int | None = None,
    batch: int | None = None,
    allow_labelled: bool = False,
    **limits: Option,
) -> tuple[Recommendation, ...]:
    """The recommendation for each table of a results folder or of records: each model, perplexity protocol and machine.

    ``limits`` are the options of ``qharness recommend`` as keywords: ``max_memory="8GiB"``,
    ``max_perplexity_increase="1%"``, ``min_decode=40`` and so on, and those of figures that plugins declare.
    ``minimize`` or ``maximize`` names the objective, as there; the default is to minimize stored bytes. Without any
    limit, ``default_limits`` apply. While damaged records are left out, no answer holds for certain.
    Raises UsageError for an invalid value or name, for an ``at`` or ``at_load`` that no table has, and for an
    ``at_load`` that several loads of a table have as their level; ResultsError if the folder holds no records.
    """
    query = RecommendRequest(limits, minimize, maximize, at, at_load, context, batch, allow_labelled).query()
    if not isinstance(results, str | Path):
        return _among(NamedRecords("", results, ()), query)
    return _among(read_folder(results), query)


def shown_recommendations(
    results: str | Path, request: RecommendRequest
) -> tuple[tuple[ShownRecommendation, ...], tuple[Damaged, ...]]:
    """What readers see of the recommendations for a results folder, and its damage.

    Raises what ``recommend`` raises. The last answer is kept beside the results.
    """
    query = request.query()
    found = read_folder(results)
    about = as_text([request, list(map(repr, found.damaged))])
    return (
        kept_answer([found], RECOMMENDATION, about, tuple[ShownRecommendation, ...], lambda: _shown(found, query)),
        found.damaged,
    )


def _shown(found: NamedRecords, query: Query) -> tuple[ShownRecommendation, ...]:
    from harness.report.recommendation import shown  # an answer that was kept need not wait for it

    return tuple(map(shown, _among(found, query)))


def _among(found: NamedRecords, query: Query) -> tuple[Recommendation, ...]:
    from harness.analysis.recommend import recommend as recommend_among

    with found.tables() as (tables, derived):
        return recommend_among(tables, query, found.damaged, derived)
