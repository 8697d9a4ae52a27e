"""How long each command takes on many records, from disk, as a user would: ``python benchmarks/records.py``.

The records are those of ``report_speed.py``, one results folder per count below ``--folder``; a folder that is there
already is measured as it is. They are written as ``qharness run`` writes them, but without an fsync after each, and
without an index, which the first command makes. Each command is a process of its own, so that what a user waits for,
starting Python included, and the most memory that the process held are what is measured. Each is run once after what
the harness keeps beside results was removed, and then ``--rounds`` times; the table gives the first and the fastest of
the later ones by the clock, the least CPU time of the later ones, which means something on a busy machine too, and the
largest peak. With ``--warm`` nothing is removed. The later rounds of some commands ask what was not asked before, or
follow one more record, which is deleted afterwards. Exits with 1, and says why, if a bar was missed on an idle machine.
docs/measurements/scale.md records what it prints.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from report_speed import records

from harness.core.job import MeasureQuality
from harness.core.record import RunRecord
from harness.storage.disk import Disk
from harness.storage.reading import attempt_folders, read_attempt
from harness.storage.store import Store
from harness.storage.summaries import REPORT

QHARNESS = str(Path(sys.executable).parent / "qharness")
LOAD_BAR_S, ANSWER_BAR_S, ONE_MORE_BAR_S, REPORT_BAR_S = 2.0, 2.0, 3.0, 5.0
"""By the clock: ``load_results``; an answer to any question; an answer after one more record; a report."""
PEAK_BAR_BYTES = 2**30
BARS_AT = 10_000
"""The bars are those of so many records or fewer, and grow in proportion to more."""


@contextmanager
def nothing(results: Path) -> Iterator[None]:
    yield


@contextmanager
def no_report(results: Path) -> Iterator[None]:
    """Without the files of the last report, so that they are rendered anew."""
    (results / REPORT).unlink(missing_ok=True)
    yield


@contextmanager
def one_more_record(results: Path) -> Iterator[None]:
    """With the quality of a variant that was never measured before, saved as a sweep saves it."""
    saved = Store(results).save(_unmeasured(results))
    try:
        yield
    finally:
        shutil.rmtree(saved.parents[1])


@dataclass(frozen=True)
class Command:
    """What a user waits for, and how long at most; None without a bar. ``situation`` is that of its later rounds."""

    words: tuple[str, ...]
    bar_s: float | None
    situation: Callable[[Path], AbstractContextManager[None]] = nothing


_LOAD = (sys.executable, "-c", "import sys, harness; harness.load_results(sys.argv[1])", "{results}")
_REPORT = (QHARNESS, "report", "{results}", "--out", "{out}")
_COMPARE = (QHARNESS, "compare", "{results}", "{results}")
_RECOMMEND = (QHARNESS, "recommend", "{results}")
_HISTORY = (QHARNESS, "history", "{results}")
COMMANDS: Mapping[str, Command] = {
    "load_results": Command(_LOAD, LOAD_BAR_S),
    "report": Command(_REPORT, REPORT_BAR_S),
    "report html": Command((*_REPORT, "--format", "html"), REPORT_BAR_S),
    "report md,csv": Command((*_REPORT, "--format", "md,csv"), REPORT_BAR_S),
    "compare": Command(_COMPARE, ANSWER_BAR_S),
    "recommend": Command(_RECOMMEND, ANSWER_BAR_S),
    "history": Command(_HISTORY, ANSWER_BAR_S),
    "report anew": Command(_REPORT, REPORT_BAR_S, no_report),
    "recommend another": Command((*_RECOMMEND, "--max-kl", "0.05{new:09}"), ANSWER_BAR_S),
    "load_results, one more record": Command(_LOAD, ONE_MORE_BAR_S, one_more_record),
    "report, one more record": Command(_REPORT, REPORT_BAR_S, one_more_record),
    "compare, one more record": Command(_COMPARE, ONE_MORE_BAR_S, one_more_record),
    "recommend, one more record": Command(_RECOMMEND, ONE_MORE_BAR_S, one_more_record),
    "history, one more record": Command(_HISTORY, ONE_MORE_BAR_S, one_more_record),
    "verify": Command((QHARNESS, "verify", "{results}"), None),
}
FAILED = frozenset({2, 70, 130})
"""Exit codes with which no answer was given."""


class _QuickDisk(Disk):
    """A disk whose content need not outlive a crash."""

    def _fsync(self, path: Path) -> None:
        pass


class _QuickStore(Store):
    """Results without an index, to which each record would be added after it was read again."""

    def _note(self, recipe: str, folder: Path) -> None:
        pass


@dataclass(frozen=True)
class Cost:
    """Of one command: by the clock, the CPU time of the process, and the most memory that it held."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Costs:
    """Of the first round of a command, and of the later ones."""

    first: Cost
    later: tuple[Cost, ...]

    @property
    def wall_s(self) -> float:
        """Of the fastest later round."""
        return min(each.wall_s for each in self.later)

    @property
    def peak_bytes(self) -> int:
        return max(each.peak_bytes for each in (self.first, *self.later))

    def cells(self, bars: Bars) -> str:
        bar, cpu_s = "–" if bars.wall_s is None else f"{bars.wall_s:g}", min(each.cpu_s for each in self.later)
        return f"{self.first.wall_s:.2f} | {self.wall_s:.2f} | {bar} | {cpu_s:.2f} | {self.peak_bytes / 2**20:.0f}"


@dataclass(frozen=True)
class Bars:
    """What a command on some records may cost at most; ``wall_s`` is None without a bar."""

    wall_s: float | None
    peak_bytes: float

    @classmethod
    def of(cls, command: Command, records: int) -> Bars:
        factor = max(1.0, records / BARS_AT)
        return cls(None if command.bar_s is None else command.bar_s * factor, PEAK_BAR_BYTES * factor)

    def missed(self, costs: Costs) -> Iterator[str]:
        if self.wall_s is not None and costs.wall_s >= self.wall_s:
            yield f"{costs.wall_s:.2f} s; the bar is {self.wall_s:g} s"
        if costs.peak_bytes >= self.peak_bytes:
            yield f"a peak of {costs.peak_bytes / 2**20:.0f} MiB; the bar is {self.peak_bytes / 2**20:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10, 100, 1_000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where the results are made, and stay; default: a temporary one")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="keep what earlier commands left beside the results")
    parser.add_argument("--pack", action="store_true", help="pack the results before they are measured")
    asked = parser.parse_args()
    print("| records | command | first, s | later, s | bar, s | later, CPU s | peak, MiB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in asked.records:
            results = (asked.folder or Path(temporary)) / str(count)
            made = make(results, count)
            if asked.pack:
                subprocess.run([QHARNESS, "store", "pack", str(results)], check=True, stdout=subprocess.DEVNULL)
            for name in asked.commands:
                if not asked.warm:
                    remove_derived(results)
                cost = cost_of(COMMANDS[name], results, asked.rounds)
                bars = Bars.of(COMMANDS[name], made)
                print(f"| {made:,} | {name} | {cost.cells(bars)} |", flush=True)
                missed += (f"{name} of {made:,} records: {fault}" for fault in bars.missed(cost))
    for fault in missed:
        print(f"missed: {fault}")
    sys.exit(1 if missed else 0)


def make(results: Path, count: int) -> int:
    """Saves the records, unless the folder exists; returns how many there are."""
    if results.exists():
        return sum(1 for _ in attempt_folders(results))
    store = _QuickStore(part := results.with_suffix(".part"), disk=_QuickDisk())
    made = 0
    for record in records(count):
        made += 1
        store.save(record)
    part.rename(results)
    return made


def remove_derived(results: Path) -> None:
    """Deletes what the harness keeps beside records: files with hidden names, in the folders of recipes."""
    for path in (*results.glob(".*"), *results.glob("*/.*")):
        if path.is_dir() and path.name != ".damaged":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def cost_of(command: Command, results: Path, rounds: int) -> Costs:
    first = measured(command.words, results)
    later = []
    for _ in range(rounds):
        with command.situation(results):
            later.append(measured(command.words, results))
    return Costs(first, tuple(later))


def _unmeasured(results: Path) -> RunRecord:
    """A record of a quality, as if it were that of another variant.

    Not all are read for it: on Linux the peak of a command is at least the memory of the process that starts it.
    """
    found = (read_attempt(folder, results).record for folder in attempt_folders(results))
    like = next(each for each in found if each and isinstance(each.spec.job, MeasureQuality) and each.status == "ok")
    job, now_ns = like.spec.job, time.time_ns()
    assert isinstance(job, MeasureQuality)
    method = replace(job.variant.method, params={"n": now_ns}, label=f"one more variant {now_ns}")
    variant = replace(job.variant, method=method)
    return replace(like, spec=replace(like.spec, job=replace(job, variant=variant)), session=f"{like.session}-more")


def measured(command: tuple[str, ...], results: Path) -> Cost:
    """What a command costs; a bound in it that is ``new`` was never asked for. Raises RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as out:
        words = [word.format(results=results, out=out, new=time.time_ns() % 10**9) for word in command]
        began = time.perf_counter()
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            complaint = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.perf_counter() - began
    if process.returncode < 0 or process.returncode in FAILED:
        raise RuntimeError(f"{' '.join(words)}: exit code {process.returncode}\n{complaint.decode(errors='replace')}")
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


if __name__ == "__main__":
    main()
