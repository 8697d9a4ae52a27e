"""Progress of a sweep: a live line on a terminal, plain lines elsewhere, JSON lines with ``--json``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from harness.report import escape, terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from harness.execution.events import Event, Started

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


class _Plain:
    """Lines, one after another."""

    def __init__(self) -> None:
        self._said = time.monotonic()  # when the remaining time was said, or the whole

    def __call__(self, event: Event) -> None:
        from harness.cli.render.events import rendered
        from harness.execution.events import Remaining

        for line in rendered(event).lines:
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
    from harness.cli.render.events import rendered

    terminal.print_json(rendered(event).entry)


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
        from harness.cli.render.events import rendered
        from harness.execution.events import Ended, Lost, PhaseBegan, ReadingResults, Remaining, Started, Verifying

        if isinstance(event, PhaseBegan) and event.spec.run_id in self._running:
            self._running[event.spec.run_id].phase, self._other = event.name, ""
        elif isinstance(event, ReadingResults):
            self._other = "reading the results"
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
        seen = rendered(event)
        for line in seen.lines:
            self._console.print(terminal.line(line, seen.style))

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
