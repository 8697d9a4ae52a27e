"""How far the sweeps into a results folder are, and the figures so far, seen from the folder alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harness.analysis.tradeoff import tradeoff
from harness.api.locations import open_results
from harness.api.report import DEFAULT_FORMATS, write_folder_report
from harness.core.progress import SweepProgress, seconds_between
from harness.errors import NewerRecordError, ResultsError, UsageError
from harness.figures.table import Table
from harness.storage.objects import is_url, local_path
from harness.storage.progress import read_progress

LOOK_EVERY_S = 2.0
FIRST_LOOKS = 6
"""How many looks wait for a sweep that is just being started: it notes nothing in its first second or two."""


@dataclass(frozen=True)
class WatchedSweep:
    """A sweep as it noted itself, how old that note is, and whether it runs: it neither ended nor fell silent."""

    progress: SweepProgress
    silence_s: float

    @property
    def runs(self) -> bool:
        return self.progress.ending == "running" and not self.progress.is_silent(self.silence_s)


@dataclass(frozen=True)
class Watched:
    """The sweeps into a results folder, one per recipe, and the tables of the records that are there.

    ``trouble`` is why they cannot be read now; then they are as they were last.
    """

    sweeps: tuple[WatchedSweep, ...]
    tables: tuple[Table, ...]
    trouble: str = ""


class ResultsWatch:
    """Looks at a results folder again and again; records are read again only after a sweep has saved some.

    Whether a sweep lives is judged by this machine's clock only at the first look: later by whether its note changes,
    because the clock of the machine that writes it may differ. Time in which the notes cannot be read is no silence.
    """

    def __init__(self, results: str | Path) -> None:
        """Raises UsageError for a bundle, and a URL that cannot be used."""
        self._results = results
        self._store = open_results(results)
        self._heard: dict[str, tuple[SweepProgress, float]] = {}  # by recipe: the last note, and since when it lasts
        self._looked_s: float | None = None
        self._looks_left = FIRST_LOOKS
        self._saved: tuple[tuple[str, str, int], ...] | None = None
        self._tables: tuple[Table, ...] = ()
        self._trouble = ""

    def refuse_absent(self) -> None:
        """Raises ResultsError if there is no such folder."""
        if not is_url(self._results) and not local_path(self._results).is_dir():
            raise ResultsError(f"{self._results}: no such folder; name a results folder of 'qharness run'")

    def look(self) -> Watched:
        """The sweeps and the tables as they are now.

        Raises ResultsError if they cannot be read at the first look, and NewerRecordError for a record of a newer
        harness.
        """
        sweeps = self._look_at_sweeps()
        if (saved := _saved(sweeps)) != self._saved:
            try:
                self._tables = tradeoff(self._store.read().records)
                self._saved = saved
            except NewerRecordError:
                raise
            except ResultsError as error:
                if self._saved is None:
                    raise
                self._trouble = str(error)
        return Watched(sweeps, self._tables, self._trouble)

    def look_at_sweeps(self) -> Watched:
        """The same without the tables."""
        return Watched(self._look_at_sweeps(), (), self._trouble)

    def goes_on(self, seen: Watched) -> bool:
        """Whether to look again: a sweep runs, or one may be just being started, or the results cannot be read."""
        runs = any(sweep.runs for sweep in seen.sweeps)
        self._looks_left = 0 if runs else self._looks_left - 1
        return runs or bool(seen.trouble) or self._looks_left > 0

    def is_empty(self) -> bool:
        """Whether no record is there yet."""
        return not self._store.read().records

    def _look_at_sweeps(self) -> tuple[WatchedSweep, ...]:
        """One whose note cannot be read any more is as it was last, and falls silent."""
        now_s = time.monotonic()
        try:
            for note in read_progress(self._store.place):
                self._hear(note)
            self._trouble = ""
        except ResultsError as error:
            if self._looked_s is None:
                raise
            self._trouble = str(error)
            deaf_s = now_s - self._looked_s
            self._heard = {recipe: (note, since_s + deaf_s) for recipe, (note, since_s) in self._heard.items()}
        self._looked_s = now_s
        return tuple(WatchedSweep(note, now_s - since_s) for _, (note, since_s) in sorted(self._heard.items()))

    def _hear(self, note: SweepProgress) -> None:
        now_s = time.monotonic()
        if note.recipe not in self._heard:
            age_s = max(seconds_between(note.noted, datetime.now(UTC).isoformat()), 0.0)
            self._heard[note.recipe] = (note, now_s - age_s)
        elif self._heard[note.recipe][0] != note:
            self._heard[note.recipe] = (note, now_s)


def write_report_on_change(
    results: str | Path,
    reports: Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    redact: bool = False,
    on_written: Callable[[Sequence[Path]], None] = lambda paths: None,
    on_trouble: Callable[[str], None] = lambda reason: None,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Writes the report of a results folder, and again whenever a sweep has saved records, until no sweep runs.

    ``on_written`` receives the files each time; the report itself names damaged records. Raises what
    ``write_folder_report`` raises, but waits for the first record while a sweep runs or is just being started. Once a
    report is written, results that cannot be read are waited for, and ``on_trouble`` is told why. Raises UsageError for
    ``github``, which is appended to a file, not written.
    """
    if "github" in formats:
        raise UsageError(
            "--watch writes files again and again, and a job summary is only appended to; leave github out"
        )
    watch = ResultsWatch(results)
    written: tuple[tuple[str, str, int], ...] | None = None
    told = False
    while True:
        seen = watch.look_at_sweeps()
        goes_on, trouble = watch.goes_on(seen), seen.trouble
        try:
            if (saved := _saved(seen.sweeps)) != written and not (goes_on and watch.is_empty()):
                on_written(write_folder_report(results, reports, formats, redact=redact))
                written = saved
        except NewerRecordError:
            raise
        except ResultsError as error:
            if written is None and not goes_on:
                raise
            trouble = str(error)
        if trouble and not told:
            on_trouble(trouble)
        told = bool(trouble)
        if not goes_on and not trouble:
            return
        wait(LOOK_EVERY_S)


def _saved(sweeps: Sequence[WatchedSweep]) -> tuple[tuple[str, str, int], ...]:
    """What changes whenever a sweep saves a record."""
    return tuple((each.progress.recipe, each.progress.began, each.progress.saved) for each in sweeps)
