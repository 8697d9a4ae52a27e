"""What ``qharness watch`` shows: each sweep, what it executes, its last failures, and the table so far."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from harness.api.watch import Watched, WatchedSweep
from harness.core.progress import seconds_between
from harness.figures.table import Table as Figures
from harness.figures.table import VariantRow
from harness.report.column import Column, cell, shown_columns
from harness.report.terminal import add_row, line, written

if TYPE_CHECKING:
    from rich.text import Text

NARROWEST = 80
"""The width for which columns are chosen where the output has none."""
PADDING = 2
"""Spaces that rich puts around the text of a column."""
STATUS_STYLES = {"unsupported": "yellow"}
ENDING_STYLES = {"finished": "bold green", "running": "bold", "interrupted": "bold yellow", "failed": "bold red"}


def frame(watched: Watched, width: int, awaits: bool = False) -> Group:
    """One frame for a terminal that many characters wide. Text from the folder has no effect on the terminal.

    ``awaits``: it is looked again, even if no sweep runs.
    """
    hint = "no sweep runs here: waiting some seconds for one that is just being started"
    idle = awaits and not watched.trouble and not any(sweep.runs for sweep in watched.sweeps)
    return Group(*_parts(watched, width), *([line(hint, "dim")] if idle else []))


def frame_text(watched: Watched, width: int = NARROWEST, colour: bool = False) -> str:
    """The same as text."""
    return written(_parts(watched, width), width, colour)


def _parts(watched: Watched, width: int) -> Iterator[Text | Table | str]:
    if watched.trouble:
        yield line(f"{watched.trouble}; this is how it was last, and it is tried again", "yellow")
    if not watched.sweeps:
        yield line("no sweep has noted here how far it is: it may not have begun, or be of an older qharness", "yellow")
    for sweep in watched.sweeps:
        yield from _sweep(sweep)
    for table in watched.tables:
        yield ""
        yield line(f"{table.model} · {table.hardware}", "bold")
        yield from _figures(table, width)


def _sweep(sweep: WatchedSweep) -> Iterator[Text | Table | str]:
    progress = sweep.progress
    now = datetime.now(UTC).isoformat()
    words, style = _state(sweep)
    yield line(f"{progress.recipe} · {words}", style)
    if progress.preparing:
        yield line(f"  {progress.preparing}, before the first run")
    else:
        yield line(f"  {progress.done} of {progress.runs} runs · {_counts(sweep)}")
    if sweep.runs and progress.running:
        table = _grid("running", "phase", "for", "on")
        for run in progress.running:
            add_row(table, f"  {run.title}", run.phase, clock(seconds_between(run.began, now)), run.where)
        yield table
    for failure in progress.failures:
        where = f" in {failure.phase}" if failure.phase else ""
        yield line(f"  {failure.title}: {failure.status}{where}: {failure.message}", "red")


def _state(sweep: WatchedSweep) -> tuple[str, str]:
    progress, silence_s = sweep.progress, sweep.silence_s
    lasted = clock(seconds_between(progress.began, progress.noted))
    if progress.ending != "running":
        return f"{progress.ending} after {lasted}", ENDING_STYLES[progress.ending]
    if not sweep.runs:
        return f"dead: silent for {clock(silence_s)}, after {lasted}; run the recipe again to resume", "bold red"
    left = "" if progress.left_s is None else f", ≈ {clock(max(progress.left_s - silence_s, 0))} left"
    return f"running for {lasted}{left}", ENDING_STYLES["running"]


def _counts(sweep: WatchedSweep) -> str:
    progress = sweep.progress
    parts = [f"{count} {status.replace('_', ' ')}" for status, count in progress.ended.items() if count]
    parts += [f"{progress.reused} of them earlier"] if progress.reused else []
    if sweep.runs:
        parts += [f"{len(progress.running)} running", f"{progress.waiting} waiting"]
    elif progress.waiting:
        parts.append(f"{progress.waiting + len(progress.running)} not made")
    return " · ".join(parts)


def _figures(table: Figures, width: int) -> Iterator[Text | Table | str]:
    """The rows, with as many columns as the width takes, those that come first; the rest is counted."""
    columns = shown_columns(table)
    shown = _grid("variant")
    shown.columns[0].no_wrap = True
    kept: list[Column] = []
    left = width - max((len(row.label) for row in table.rows), default=0) - PADDING
    for column in columns:
        words = (*_heading(column).split(), *(_cell(column, row) for row in table.rows))
        widest = max(map(len, words))
        left -= PADDING + widest
        if kept and left < 0:
            break
        kept.append(column)
        shown.add_column(line(_heading(column)), justify="right", vertical="bottom", min_width=widest)
    for row in table.rows:
        style = "" if row.status == "ok" else STATUS_STYLES.get(row.status, "red")
        add_row(shown, line(row.label, style), *(_cell(column, row) for column in kept))
    yield shown
    if len(kept) < len(columns):
        yield line(f"{len(columns) - len(kept)} more columns: see qharness report", "dim")


def _heading(column: Column) -> str:
    return " ".join(part for part in (column.heading, column.unit) if part)


def _cell(column: Column, row: VariantRow) -> str:
    return cell(column, row).text


def _grid(*headings: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in headings:
        table.add_column(line(heading), vertical="bottom")
    return table


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours if there are any."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
