"""Whether the sources of a site agree on what they measured alike: the test of ``harness.pool``, for a model's page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from harness.analysis.pooling import pool
from harness.api.results import NamedRecords, read_folder, redacted
from harness.core.job import VariantJob
from harness.core.record import RunRecord
from harness.errors import HarnessError
from harness.report.agreement import agreement_numbers
from harness.report.redact import Redaction
from harness.report.site.entries import SiteAgreement, SweepEntry
from harness.report.site.pages import SiteModel

MOST_POOLED = 6
"""Sources of a model that are tested: reading them is what a site with many sweeps of one model takes longest for."""


def agreements(
    model: SiteModel, places: Mapping[str, str | Path], redaction: Redaction | None
) -> dict[str, SiteAgreement]:
    """By series, how far those sources agree that measured it alike. ``places`` are where each sweep's results are.

    A source is what is at one place. What cannot be read any more is none.
    """
    sources: dict[str, tuple[RunRecord, ...]] = {}
    for name, place in _chosen(model, places).items():
        with suppress(HarnessError):
            sources[name] = _of_model(read_folder(place), model, redaction)
    if len(sources) < 2:
        return {}
    return {
        each.key: SiteAgreement(each.agreement, len(each.sources), agreement_numbers(each))
        for each in pool(sources).figures
    }


def _chosen(model: SiteModel, places: Mapping[str, str | Path]) -> dict[str, str | Path]:
    """The newest source of each machine, then the second newest, and so on; each place once."""
    seen: Counter[tuple[str, ...]] = Counter()
    ranked: list[tuple[int, SweepEntry]] = []
    for sweep in model.sweeps:  # the newest first
        ranked.append((seen[sweep.machines], sweep))
        seen[sweep.machines] += 1
    found: dict[str | Path, str] = {}
    for _, sweep in sorted(ranked, key=lambda pair: pair[0]):
        found.setdefault(places[sweep.name], sweep.name)
    return {name: place for place, name in list(found.items())[:MOST_POOLED]}


def _of_model(found: NamedRecords, model: SiteModel, redaction: Redaction | None) -> tuple[RunRecord, ...]:
    shown = found if redaction is None else redacted([found], redaction)[0]
    return tuple(
        record
        for record in shown.records
        if isinstance(record.spec.job, VariantJob) and record.spec.model.content_id == model.id
    )
