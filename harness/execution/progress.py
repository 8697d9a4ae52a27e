"""Notes how far a sweep is beside its results, for ``qharness watch``."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType

from harness.core.progress import Ending, RunFailure, RunUnderWay, SweepProgress
from harness.core.record import FAILURES, RunRecord
from harness.core.run import RunSpec, titles_among
from harness.errors import ResultsError
from harness.execution.events import (
    Ended,
    Event,
    Lost,
    PhaseBegan,
    ReadingResults,
    Remaining,
    Started,
    Waiting,
    Withdrawn,
)
from harness.execution.interrupt import uninterrupted
from harness.storage.progress import remove_preparing, write_progress
from harness.storage.store import Store

HEARTBEAT_S = 10.0
QUIET_S = 1.0
"""How long a note waits for further events: it is written once a second at most, which disturbs no measurement."""
KEPT_FAILURES = 8
PLANNING = "planning"


class ProgressNote:
    """Follows the events of a sweep, from before it plans. While its context lasts, a thread writes the note of what it
    has seen.

    A sweep that executes nothing and ends at once leaves the note of the one before. So does one that never begins,
    because another one has the folder: what it prepares is noted in a file of its own. A note that cannot be written is
    no error: the sweep goes on, and the next one may succeed.
    """

    def __init__(self, store: Store, recipe: str) -> None:
        self._store = store
        self._end_s: float | None = None  # when it is expected to end, by this process's clock
        now = _now()
        self._note = SweepProgress(recipe, now, now, HEARTBEAT_S, 0, preparing=PLANNING)
        self._title_among: Callable[[RunSpec], str] = lambda spec: spec.title
        self._device_of: Callable[[RunSpec], str] = lambda spec: ""
        self._statuses: dict[str, str] = {}
        self._running: dict[str, RunUnderWay] = {}
        self._failures: dict[str, RunFailure] = {}
        self._made = 0
        self._written = self._prepared = False
        self._lock = threading.Lock()
        self._changed, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write_on_change, name="progress", daemon=True)

    def __enter__(self) -> ProgressNote:
        self._changed.set()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with uninterrupted():
            self._closed.set()
            self._changed.set()
            self._thread.join()
            ending: Ending = "interrupted" if kind is KeyboardInterrupt else "failed" if kind else "finished"
            self._running.clear()
            note = self._state(ending)
            with suppress(OSError, ResultsError):
                if note.preparing and ending != "finished":
                    if self._prepared:
                        write_progress(self._store.place, note)
                    return
                self._remove_preparing()
                if self._written or self._made:
                    with self._store.locked(note.recipe):  # it has been released, and another sweep may have begun
                        write_progress(self._store.place, note)

    def plan(self, specs: Sequence[RunSpec], device_of: Callable[[RunSpec], str]) -> None:
        """Takes note of what the sweep is about to run. ``device_of`` names what a run executes on, if it knows."""
        with self._lock:
            self._note = replace(self._note, runs=len(specs), preparing=PLANNING)
            self._title_among, self._device_of = titles_among(specs), device_of

    def following(self, on_event: Callable[[Event], None]) -> Callable[[Event], None]:
        """The same receiver of events, from which the note hears of them too."""

        def call(event: Event) -> None:
            self.follow(event)
            on_event(event)

        return call

    def follow(self, event: Event) -> None:
        """Takes note of an event of the sweep."""
        with self._lock:
            if isinstance(event, ReadingResults):  # it has the folder for itself
                self._note = replace(self._note, preparing="")
            elif isinstance(event, Started):
                spec = event.spec
                where = event.node or spec.device
                self._note = replace(self._note, runs=event.total)  # those that nothing needs are left out
                self._running[spec.run_id] = RunUnderWay(self._title(spec), "start", _now(), where)
            elif isinstance(event, PhaseBegan) and event.spec.run_id in self._running:
                known = self._running[event.spec.run_id]
                where = self._device_of(event.spec) or known.where
                self._running[event.spec.run_id] = replace(known, phase=event.name, where=where)
            elif isinstance(event, Waiting) and self._note.preparing:
                self._note = replace(self._note, preparing=event.message)
            elif isinstance(event, Remaining):
                self._end_s = time.monotonic() + event.left_s.expected
            elif isinstance(event, Lost):
                self._running.pop(event.spec.run_id, None)
            elif isinstance(event, Ended):
                self._end(event.record, event.reused)
            elif isinstance(event, Withdrawn):
                self._statuses[event.record.spec.run_id] = event.record.status
                self._failures[event.record.spec.run_id] = self._failure(event.record)
                self._note = replace(self._note, saved=self._note.saved + 1)
            else:
                return
        self._changed.set()

    def _end(self, record: RunRecord, reused: bool) -> None:
        run_id = record.spec.run_id
        self._running.pop(run_id, None)
        self._statuses[run_id] = record.status
        self._made += not reused
        self._note = replace(self._note, reused=self._note.reused + reused, saved=self._note.saved + 1)
        if record.status in FAILURES:
            self._failures[run_id] = self._failure(record)

    def _failure(self, record: RunRecord) -> RunFailure:
        failure = record.outcome.failure
        lines = failure.message.splitlines() if failure else []
        message = self._store.anonymizer.message(lines[0] if lines else "")
        return RunFailure(self._title(record.spec), record.status, failure.phase if failure else "", message)

    def _title(self, spec: RunSpec) -> str:
        return self._store.anonymizer.message(self._title_among(spec))

    def _write_on_change(self) -> None:
        while True:
            self._changed.wait(HEARTBEAT_S)
            if self._closed.wait(QUIET_S):
                return
            self._changed.clear()
            note = self._state("running")
            with suppress(OSError, ResultsError):  # a full disk ends the sweep where it loses a result, not here
                write_progress(self._store.place, note)
                self._prepared |= bool(note.preparing)
                self._written |= not note.preparing
            if not note.preparing:
                self._remove_preparing()

    def _remove_preparing(self) -> None:
        if self._prepared:
            with suppress(OSError, ResultsError):  # it is older than what is noted from now on
                remove_preparing(self._store.place, self._note.recipe)
                self._prepared = False

    def _state(self, ending: Ending) -> SweepProgress:
        with self._lock:
            left_s = None if self._end_s is None else max(self._end_s - time.monotonic(), 0.0)
            return replace(
                self._note,
                noted=_now(),
                ended=dict(sorted(Counter(self._statuses.values()).items())),
                running=tuple(self._running.values()),
                failures=tuple(self._failures.values())[-KEPT_FAILURES:],
                left_s=left_s if ending == "running" else None,
                ending=ending,
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
