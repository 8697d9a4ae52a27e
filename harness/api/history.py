"""``harness.history``: figures over time, from the folders and baselines that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.analysis.history import History, trace
from harness.api.baselines import FOLDER
from harness.api.results import kept_of, read_named, redacted
from harness.errors import UsageError, refuse_unknown
from harness.plugins import gates
from harness.storage.summaries import TRACED


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
    with kept_of(sources, TRACED) as kept:
        whole = trace(
            (record for each in sources for record in each.records),
            metrics=metrics,
            names=[each.name for each in sources],
            damaged=[damaged for each in sources for damaged in each.damaged],
            kept=kept,
        )
    series = tuple(each for each in whole.series if _has(each.method, methods) and _has(each.model, models))
    if not series:
        there = ", ".join(sorted({f"{each.model} × {each.method}" for each in whole.series}))
        raise UsageError(f"no figure of {' or '.join((*methods, *models))}; there are figures of {there}")
    failed = tuple(each for each in whole.failed if _has(each.run, methods) and _has(each.run, models))
    return replace(whole, series=series, failed=failed)


def _has(name: str, words: Sequence[str]) -> bool:
    return not words or any(word.casefold() in name.casefold() for word in words)
