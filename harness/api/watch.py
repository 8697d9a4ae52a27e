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
from harness.errors import ResultsError, UsageError
from harness.figures.table import Table
from harness.storage.objects import is_url, local_path
from harness.storage.progress import read_progress

LOOK_EVERY_S = 2.0


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
    """The sweeps into a results folder, one per recipe, and the tables of the records that are there."""

    sweeps: tuple[WatchedSweep, ...]
    tables: tuple[Table, ...]

    @property
    def runs(self) -> bool:
        """Whether any sweep runs."""
        return any(sweep.runs for sweep in self.sweeps)


class ResultsWatch:
    """Looks at a results folder again and again; records are read again only after a sweep has saved some.

    Whether a sweep lives is judged by this machine's clock only at the first look: later by whether its note changes,
    because the clock of the machine that writes it may differ.
    """

    def __init__(self, results: str | Path) -> None:
        """Raises ResultsError if there is no such folder, and UsageError for a URL that cannot be used."""
        if not is_url(results) and not local_path(results).is_dir():
            raise ResultsError(f"{results}: no such folder; name a results folder of 'qharness run'")
        self._store = open_results(results)
        self._heard: dict[str, tuple[SweepProgress, float]] = {}  # by recipe: the last note, and since when it lasts
        self._saved: tuple[tuple[str, str, int], ...] | None = None
        self._tables: tuple[Table, ...] = ()

    def sweeps(self) -> tuple[WatchedSweep, ...]:
        """The sweeps as they are now. One whose note cannot be read any more is as it was last, and falls silent."""
        for note in read_progress(self._store.place):
            self._hear(note)
        now_s = time.monotonic()
        return tuple(WatchedSweep(note, now_s - since_s) for _, (note, since_s) in sorted(self._heard.items()))

    def look(self) -> Watched:
        """The sweeps and the tables as they are now. Raises NewerRecordError for a record of a newer harness."""
        sweeps = self.sweeps()
        if (saved := _saved(sweeps)) != self._saved:
            self._tables = tradeoff(self._store.read().records)
            self._saved = saved
        return Watched(sweeps, self._tables)

    def is_empty(self) -> bool:
        """Whether no record is there yet."""
        return not self._store.read().records

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
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Writes the report of a results folder, and again whenever a sweep has saved records, until no sweep runs.

    ``on_written`` receives the files each time; the report itself names damaged records. Raises what
    ``write_folder_report`` raises, but waits for the first record while a sweep runs; UsageError for ``github``, which
    is appended to a file, not written.
    """
    if "github" in formats:
        raise UsageError(
            "--watch writes files again and again, and a job summary is only appended to; leave github out"
        )
    watch = ResultsWatch(results)
    written: tuple[tuple[str, str, int], ...] | None = None
    while True:
        sweeps = watch.sweeps()
        runs = any(sweep.runs for sweep in sweeps)
        if (saved := _saved(sweeps)) != written and not (runs and watch.is_empty()):
            on_written(write_folder_report(results, reports, formats, redact=redact))
            written = saved
        if not runs:
            return
        wait(LOOK_EVERY_S)


def _saved(sweeps: Sequence[WatchedSweep]) -> tuple[tuple[str, str, int], ...]:
    """What changes whenever a sweep saves a record."""
    return tuple((each.progress.recipe, each.progress.began, each.progress.saved) for each in sweeps)
