"""Whether the sources of a site agree on what they measured alike: the test of ``harness.pool``, for a model's page.

What is tested is chosen in ``analysis`` and ``report``: if that code changes, what a site keeps of it is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from harness.analysis.pooling import independent, pool
from harness.api.results import NamedRecords, read_folder, redacted
from harness.core.record import RunRecord
from harness.errors import HarnessError
from harness.report.agreement import agreement_numbers
from harness.report.redact import Redaction
from harness.report.site.entries import SiteAgreement
from harness.report.site.pages import SiteModel


def agreements(
    model: SiteModel,
    places: Mapping[str, str | Path],
    redaction: Redaction | None,
    counting: Callable[[NamedRecords], NamedRecords],
) -> dict[str, SiteAgreement]:
    """By series, how far those sources agree that measured it alike. ``places`` are where each sweep's results are.

    ``counting`` makes those runs of a place invalid that were withdrawn in another. A source is what is at one place
    and at none before it. What cannot be read any more is none.
    """
    sources = independent(_read(model, places, redaction, counting), model.id)
    if len(sources) < 2:
        return {}
    return {
        each.key: SiteAgreement(each.agreement, len(each.sources), agreement_numbers(each))
        for each in pool(sources).figures
    }


def _read(
    model: SiteModel,
    places: Mapping[str, str | Path],
    redaction: Redaction | None,
    counting: Callable[[NamedRecords], NamedRecords],
) -> Iterator[tuple[str, Sequence[RunRecord]]]:
    """The records at each place, once each."""
    seen: set[str | Path] = set()
    for sweep in model.sweeps_by_machine:
        place = places[sweep.name]
        if place in seen:
            continue
        seen.add(place)
        with suppress(HarnessError):
            found = counting(read_folder(place))
            yield sweep.name, (found if redaction is None else redacted([found], redaction)[0]).records
