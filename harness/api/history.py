"""``harness.history``: figures over time, from the folders and baselines that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.analysis.history.series import History
from harness.api.baselines import FOLDER
from harness.api.results import NamedRecords, kept_answer, kept_of, read_named, redacted
from harness.core.exact_text import as_text
from harness.errors import UsageError, refuse_unknown
from harness.plugins import gates
from harness.storage.summaries import HISTORY, TRACED


def history(
    *places: str | Path,
    metrics: Sequence[str] = (),
    methods: Sequence[str] = (),
    models: Sequence[str] = (),
    results: str | Path = "results",
    baselines: str | Path = FOLDER,
    redact: bool = False,
) -> History:
    """Each figure over the sessions that measured it, with change points, as ``qharness history`` does.

    ``places`` are what ``harness.compare`` takes: results folders, ``FOLDER@ID``, names of baselines. ``metrics`` are
    names of gates. ``methods`` and ``models`` keep series whose name contains one of these words, ignoring case.
    ``redact`` leaves out what a redacted report leaves out.
    Raises UsageError for a place that does not exist, an unknown metric, or if nothing is left to show.
    """
    if not places:
        raise UsageError("history: name a results folder")
    for metric in metrics:
        if metric not in gates():
            refuse_unknown("metric", metric, gates())
    sources = [read_named(str(place), results, Path(baselines)) for place in places]
    sources = redacted(sources) if redact else sources
    whole = kept_answer(sources, HISTORY, as_text(metrics), History, lambda: _traced(sources, metrics))
    series = tuple(each for each in whole.series if _has(each.method, methods) and _has(each.model, models))
    if not series:
        there = ", ".join(sorted({f"{each.model} × {each.method}" for each in whole.series}))
        raise UsageError(f"no figure of {' or '.join((*methods, *models))}; there are figures of {there}")
    failed = tuple(each for each in whole.failed if _has(each.run, methods) and _has(each.run, models))
    silent = tuple(each for each in whole.silent if _has(each.run, methods) and _has(each.run, models))
    damaged = tuple(each for source in sources for each in source.damaged)
    names = tuple(each.name for each in sources)
    return replace(whole, names=names, series=series, failed=failed, silent=silent, damaged=damaged)


def _traced(sources: Sequence[NamedRecords], metrics: Sequence[str]) -> History:
    """The history of all records, without what the user called them."""
    from harness.analysis.history.trace import trace  # an answer that was kept need not wait for it

    with kept_of(sources, TRACED) as kept:
        return trace((record for each in sources for record in each.records), metrics=metrics, kept=kept)


def _has(name: str, words: Sequence[str]) -> bool:
    return not words or any(word.casefold() in name.casefold() for word in words)
