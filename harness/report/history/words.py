"""Texts shared by all formats: a series in a line, a change in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from operator import itemgetter

from harness.analysis.history.series import History, LevelChange, Series
from harness.figures.formats import BLANK, signed, significant
from harness.figures.gate import shown
from harness.figures.statistic import silence
from harness.plugins import gates
from harness.report.comparison.words import environment

BARS = "▁▂▃▄▅▆▇█"
LONGEST = 32
"""The number of figures in a sparkline, the newest ones."""


def headline(found: History) -> str:
    """``3 changes in 12 series of 20 sessions``, counting only changes above their threshold."""
    if not found.series:
        return f"no figure changed by more than its threshold in {_counted(found.sessions, 'session')}"
    each = [change for series in found.series for change in series.changes]
    real = [change for change in each if change.matters]
    worse = sum(change.better is False for change in real)
    total = f"{_counted(len(real), 'change')} in {len(found.series)} series of {_counted(found.sessions, 'session')}"
    parts = [f"{worse} for the worse"] if worse else []
    parts += [f"{len(each) - len(real)} more too small to matter"] if len(each) > len(real) else []
    return "; ".join([total, *parts])


def subject(series: Series) -> str:
    """``decode · batch 1, prompt 128``."""
    return f"{series.metric} · {series.where}" if series.where else series.metric


def apart(series: Series) -> str:
    """What distinguishes it from other series of the same name; empty if there are none."""
    return "; ".join(series.apart)


def sparkline(values: Sequence[float]) -> str:
    """The newest figures from lowest to highest bar; a flat line if all are equal."""
    drawn = values[-LONGEST:]
    low, high = min(drawn), max(drawn)
    if low == high:
        return BARS[3] * len(drawn)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in drawn)


def figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else significant(value, 4)


def span(series: Series) -> str:
    """``19.42 → 19.61 perplexity``: the oldest and the newest figure."""
    first, last = series.points[0].value, series.points[-1].value
    oldest = figure(first)
    newest = oldest if first == last else figure(last)
    return f"{oldest} → {newest} {series.unit}"


def size(series: Series, change: LevelChange) -> str:
    """``+0.61%``."""
    if change.size is None:
        return BLANK
    if series.relative:
        return f"{signed(100 * change.size, 2)}%"
    if series.unit in ("fraction", "score"):
        return f"{signed(100 * change.size, 2)} points"
    return f"{signed(change.size, 2)} {series.unit}"


def judgement(change: LevelChange) -> str:
    """``worse``, ``better``, or ``changed`` if neither direction is better; in brackets if too small to matter."""
    word = "changed" if change.better is None else "better" if change.better else "worse"
    return word if change.matters else f"({word})"


def levels(series: Series, change: LevelChange) -> str:
    return f"{figure(change.before)} → {figure(change.after)} {series.unit}"


def limit(series: Series) -> str:
    return f"±{shown(gates()[series.metric], series.threshold)}"


def when(started_at: str) -> str:
    """The recorded time to the minute; text that is not a time is kept."""
    try:
        return datetime.fromisoformat(started_at).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return started_at


def around(change: LevelChange) -> list[str]:
    """What else changed at that point."""
    return [environment(each) for each in change.environment]


def summary(series: Series) -> str:
    """The kinds of changes, or why there was no search."""
    if series.changes:
        return ", ".join(judgement(each) for each in series.changes)
    return series.note or "no change"


def changes(found: History) -> Iterator[tuple[Series, LevelChange]]:
    """Newest first; within a session, those that matter first."""
    each = [(series, change) for series in found.series for change in series.changes]
    each.sort(key=lambda pair: not pair[1].matters)
    yield from sorted(each, key=lambda pair: pair[1].started_at, reverse=True)


def notes(found: History) -> Iterator[str]:
    """Runs without a figure, servers that answered nothing, and records that were left out."""
    runs = [(each.started_at, f"{each.run}: {each.status.replace('_', ' ')}: {each.reason}") for each in found.failed]
    runs += [
        (each.started_at, f"{each.run}: {silence(each.silent, each.processes)} at {each.load}") for each in found.silent
    ]
    for started_at, sentence in sorted(runs, key=itemgetter(0)):
        yield f"{when(started_at)} {sentence}"
    yield from (damaged.remark for damaged in found.damaged)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
