"""Progress of a sweep: a live line on a terminal, plain lines elsewhere, JSON lines with ``--json``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from harness.core.foreign import shown
from harness.report import escape, terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from harness.execution.debris import Debris
    from harness.execution.events import Ended, Event, Expected, Forecasted, Remaining, Started

REFRESHES_PER_SECOND = 1
"""Rare enough not to affect the measurements."""
REMAINING_EVERY_S = 60.0
"""How often plain lines say how long the rest takes, at most."""


class Display(Protocol):
    """Shows the events of a sweep."""

    def __call__(self, event: Event) -> None: ...


@contextmanager
def display(as_json: bool) -> Iterator[Display]:
    """The display suited to the output."""
    if as_json:
        yield _json
    elif sys.stdout.isatty():
        from rich.console import Console

        with _Live(Console()).shown() as live:
            yield live
    else:
        yield _Plain()


def _lines(event: Event) -> tuple[list[str], str]:
    """What to print of an event, and the colour for a terminal; nothing of one that the next event replaces."""
    from harness.execution.events import (
        ArtifactDamaged,
        Cleared,
        DamageFound,
        Ended,
        Expected,
        Forecasted,
        GpuUnused,
        Lost,
        NotShared,
        TakenIn,
        Waiting,
        Withdrawn,
    )

    if isinstance(event, Waiting):
        return [event.message], ""
    if isinstance(event, Expected):
        from harness.cli.render.forecast import expected_words

        return [f"expected: {expected_words(event.forecast)}"], ""
    if isinstance(event, Forecasted):
        from harness.cli.render.forecast import forecast_and_fact

        return [forecast_and_fact(event)], ""
    if isinstance(event, GpuUnused):
        return [f"the GPU is not used: {event.problem}"], "yellow"
    if isinstance(event, Cleared):
        return _cleared_lines(event.debris), ""
    if isinstance(event, DamageFound):
        if event.moved_to is None:
            return [event.damaged.remark], "red"
        return [f"damaged, so moved to {shown(event.moved_to)} and made again: {event.damaged.sentence}"], "red"
    if isinstance(event, NotShared):
        return [f"{event.spec.title}: not sent to the shared cache", f"    {event.reason}"], "yellow"
    if isinstance(event, ArtifactDamaged):
        title = event.spec.title
        return [f"{title}: its artifact in the cache was damaged and is removed", f"    {event.reason}"], "yellow"
    if isinstance(event, Lost):
        then = "it is made once more" if event.again else "it had been made once more already"
        left = "; nothing more runs there" if event.for_good else ""
        return [f"{event.spec.title}: lost with {event.node}, {then}{left}", f"    {event.reason}"], "yellow"
    if isinstance(event, TakenIn):
        return [f"{event.record.spec.title}: taken in; an earlier sweep could not save it"], ""
    if isinstance(event, Withdrawn):
        failure = event.record.outcome.failure
        return [f"{event.record.spec.title}: withdrawn, invalid", f"    {failure.message if failure else ''}"], "red"
    return _end_lines(event) if isinstance(event, Ended) else ([], "")


def _end_lines(event: Ended) -> tuple[list[str], str]:
    record = event.record
    took = "reused" if event.reused else f"{record.wall_s:.1f} s"
    lines = [f"[{event.index}/{event.total}] {record.spec.title}: {record.status} ({took})"]
    if record.outcome.failure is not None:
        failure = record.outcome.failure
        lines.append(f"    in {failure.phase}: {(failure.message.splitlines() or [failure.type])[0]}")
    return lines, "" if record.status == "ok" else "yellow" if record.status == "unsupported" else "red"


def _cleared_lines(debris: Debris) -> list[str]:
    lines = []
    if debris.processes or debris.paths:
        processes = f"{debris.processes} process{'es' * (debris.processes != 1)}"
        lines = [f"removed what interrupted sweeps left: {processes}, {_count(len(debris.paths))}"]
    if debris.unknown:
        of = "of other machines or containers, which may still need them"
        lines.append(f"left alone: {_count(len(debris.unknown))} {of}, such as {shown(debris.unknown[0])}")
    return lines


def _count(paths: int) -> str:
    return f"{paths} unfinished file{'s' * (paths != 1)} or folder{'s' * (paths != 1)}"


class _Plain:
    """Lines, one after another."""

    def __init__(self) -> None:
        self._said = time.monotonic()  # when the remaining time was said, or the whole

    def __call__(self, event: Event) -> None:
        from harness.execution.events import Remaining

        for line in _lines(event)[0]:
            terminal.say(line)
        if (
            isinstance(event, Remaining)
            and time.monotonic() >= self._said + REMAINING_EVERY_S
            and event.left_s.expected
        ):
            from harness.cli.render.forecast import about_s

            terminal.say(f"remaining: {about_s(event.left_s)}")
            self._said = time.monotonic()


def _json(event: Event) -> None:
    from harness.execution.events import (
        ArtifactDamaged,
        Cleared,
        DamageFound,
        Ended,
        Expected,
        Forecasted,
        GpuUnused,
        Lost,
        NotShared,
        PhaseBegan,
        Remaining,
        TakenIn,
        Verifying,
        Waiting,
        Withdrawn,
    )

    if isinstance(event, Waiting):
        terminal.print_json({"event": "waiting", "message": event.message})
        return
    if isinstance(event, Expected | Remaining | Forecasted):
        _json_forecast(event)
        return
    if isinstance(event, GpuUnused):
        terminal.print_json({"event": "gpu_unused", "problem": event.problem})
        return
    if isinstance(event, Cleared):
        debris = event.debris
        counts = {"processes": debris.processes, "paths": len(debris.paths), "unknown": len(debris.unknown)}
        terminal.print_json({"event": "cleared", **counts})
        return
    if isinstance(event, DamageFound):
        terminal.print_json({"event": "damaged", **event.damaged.entry(), "moved_to": event.moved_to})
        return
    if isinstance(event, Verifying):
        terminal.print_json({"event": "verifying", **event.spec.names()})
        return
    if isinstance(event, NotShared):
        terminal.print_json({"event": "not_shared", **event.spec.names(), "reason": event.reason})
        return
    if isinstance(event, ArtifactDamaged):
        names = event.spec.names()
        terminal.print_json({"event": "artifact_damaged", **names, "reason": event.reason})
        return
    if isinstance(event, Lost):
        lost = {"node": event.node, "reason": event.reason, "for_good": event.for_good, "again": event.again}
        terminal.print_json({"event": "lost", **event.spec.names(), **lost})
        return
    if isinstance(event, TakenIn):
        terminal.print_json({"event": "taken_in", **event.record.spec.names()})
        return
    if isinstance(event, Withdrawn):
        failure = event.record.outcome.failure
        withdrawn = {"event": "withdrawn", "run_id": event.record.spec.run_id, "status": event.record.status}
        terminal.print_json({**withdrawn, "failure": failure.message if failure else None})
        return
    if isinstance(event, PhaseBegan):
        terminal.print_json({"event": "phase", "name": event.name, "run_id": event.spec.run_id})
        return
    ended = isinstance(event, Ended)
    spec = event.record.spec if isinstance(event, Ended) else event.spec
    line: dict[str, object] = {
        "event": "ended" if ended else "started",
        "run": event.index,
        "of": event.total,
        **spec.names(),
    }
    node = event.record.node if isinstance(event, Ended) else event.node
    if node:
        line["node"] = node
    if isinstance(event, Ended):
        failure = event.record.outcome.failure
        line |= {
            "status": event.record.status,
            "reused": event.reused,
            "wall_s": event.record.wall_s,
            "failure": failure.message if failure else None,
        }
    terminal.print_json(line)


def _json_forecast(event: Expected | Remaining | Forecasted) -> None:
    from harness.cli.render.forecast import span_entry
    from harness.execution.events import Expected, Forecasted

    if isinstance(event, Expected):
        forecast, cost = event.forecast, event.forecast.cost
        line: dict[str, object] = {"event": "expected", **span_entry(forecast.total_s)}
        line |= {"runs": len(forecast.runs), "disk_bytes": forecast.disk_bytes, "bases": dict(forecast.bases)}
        line |= {"cost": None if cost is None else [cost.expected, cost.low, cost.high]}
        line |= {"currency": forecast.price.currency if forecast.price else None}
    elif isinstance(event, Forecasted):
        counts = {"runs": event.runs, "within": event.within}
        line = {"event": "forecast_and_fact", **span_entry(event.expected_s), "took_s": event.took_s, **counts}
    else:
        line = {"event": "remaining", **span_entry(event.left_s)}
    terminal.print_json(line)


@dataclass
class _Running:
    """A run that executes."""

    started: Started
    phase: str = "start"
    began: float = field(default_factory=time.monotonic)


class _Live:
    """One status line below the lines of finished runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._end: float | None = None  # when the sweep is expected to end
        self._running: dict[str, _Running] = {}
        self._other = ""  # what is done besides runs

    @contextmanager
    def shown(self) -> Iterator[_Live]:
        from rich.live import Live

        with Live(
            console=self._console,
            get_renderable=self._line,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield self

    def __call__(self, event: Event) -> None:
        from harness.execution.events import Ended, Lost, PhaseBegan, Remaining, Started, Verifying

        if isinstance(event, PhaseBegan) and event.spec.run_id in self._running:
            self._running[event.spec.run_id].phase, self._other = event.name, ""
        elif isinstance(event, Verifying):
            self._other = f"verifying the artifact of {event.spec.title}"
        elif isinstance(event, Lost):
            self._running.pop(event.spec.run_id, None)
        elif isinstance(event, Ended):
            self._running.pop(event.record.spec.run_id, None)
        elif isinstance(event, Remaining):
            self._end = time.monotonic() + event.left_s.expected
        elif isinstance(event, Started):
            self._running[event.spec.run_id] = _Running(event)
            self._other = ""
        lines, style = _lines(event)
        for line in lines:
            self._console.print(terminal.line(line, style))

    def _line(self) -> Text:
        from rich.text import Text

        now = time.monotonic()
        running = list(self._running.values())
        if not running:
            return Text("" if self._other == "" else f"{self._other} {_clock(now - self._began)}")
        first = running[0]
        place = f"[{first.started.index}/{first.started.total}] {first.started.spec.title}"
        line = f"{place} · {self._other or first.phase} {_clock(now - first.began)}"
        if len(running) > 1:
            line += f" · and {len(running) - 1} more"
        line += f" · total {_clock(now - self._began)}"
        if self._end is not None:
            line += f", ≈ {_clock(max(self._end - now, 0))} left"
        return Text(escape.terminal(line), style="bold", no_wrap=True, overflow="ellipsis")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
