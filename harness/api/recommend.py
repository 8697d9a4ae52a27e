"""``harness.recommend``: which variant of a results folder to ship."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.analysis.choice import Recommendation
from harness.analysis.query import Query, count, parse_limits, parse_objective
from harness.analysis.recommend import recommend as recommend_among
from harness.api.results import read_folder
from harness.core.record import RunRecord
from harness.figures.ask import Option


def recommend(
    results: str | Path | Sequence[RunRecord],
    *,
    minimize: str | None = None,
    maximize: str | None = None,
    at: str | None = None,
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
    Raises UsageError for an invalid value or name, or for an ``at`` that no table has; ResultsError if the folder holds
    no records.
    """
    query = Query(
        parse_limits(limits),
        parse_objective(minimize, maximize),
        at,
        count("context", context),
        count("batch", batch),
        allow_labelled,
    )
    if not isinstance(results, str | Path):
        return recommend_among(results, query)
    found = read_folder(results)
    with found.summaries() as derived:
        return recommend_among(found.records, query, found.damaged, derived)
