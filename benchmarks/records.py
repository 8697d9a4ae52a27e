"""How long each command takes on many records, from disk, as a user would: ``python benchmarks/records.py``.

The records are those of ``report_speed.py``, one results folder per count below ``--folder``; a folder that is there
already is measured as it is. They are written as ``qharness run`` writes them, but without an fsync after each, and
without an index, which the first command makes. Each command is a process of its own, so that what a user waits for,
starting Python included, and the most memory that the process held are what is measured. Each is run once after what
the harness keeps beside results was removed, and then ``--rounds`` times; the table gives the first and the fastest of
the later ones by the clock, the least CPU time of the later ones, which means something on a busy machine too, and the
largest peak. With ``--warm`` nothing is removed. docs/measurements/scale.md records what it prints.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from report_speed import records

from harness.storage.disk import Disk
from harness.storage.reading import attempt_folders
from harness.storage.store import Store

QHARNESS = str(Path(sys.executable).parent / "qharness")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "load_results": (sys.executable, "-c", "import sys, harness; harness.load_results(sys.argv[1])", "{results}"),
    "report": (QHARNESS, "report", "{results}", "--out", "{out}"),
    "report html": (QHARNESS, "report", "{results}", "--out", "{out}", "--format", "html"),
    "report md,csv": (QHARNESS, "report", "{results}", "--out", "{out}", "--format", "md,csv"),
    "compare": (QHARNESS, "compare", "{results}", "{results}"),
    "recommend": (QHARNESS, "recommend", "{results}"),
    "history": (QHARNESS, "history", "{results}"),
    "verify": (QHARNESS, "verify", "{results}"),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10, 100, 1_000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where the results are made, and stay; default: a temporary one")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="keep what earlier commands left beside the results")
    parser.add_argument("--pack", action="store_true", help="pack the results before they are measured")
    asked = parser.parse_args()
    print("| records | command | first, s | later, s | later, CPU s | peak, MiB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as temporary:
        for count in asked.records:
            results = (asked.folder or Path(temporary)) / str(count)
            made = make(results, count)
            if asked.pack:
                subprocess.run([QHARNESS, "store", "pack", str(results)], check=True, stdout=subprocess.DEVNULL)
            for command in asked.commands:
                if not asked.warm:
                    remove_derived(results)
                first, *later = (measured(COMMANDS[command], results) for _ in range(1 + asked.rounds))
                wall_s, cpu_s = min(each.wall_s for each in later), min(each.cpu_s for each in later)
                peak_mib = max(each.peak_bytes for each in (first, *later)) / 2**20
                print(
                    f"| {made:,} | {command} | {first.wall_s:.2f} | {wall_s:.2f} | {cpu_s:.2f} | {peak_mib:.0f} |",
                    flush=True,
                )


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


def measured(command: tuple[str, ...], results: Path) -> Cost:
    """What a command costs. Raises RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as out:
        words = [word.format(results=results, out=out) for word in command]
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
