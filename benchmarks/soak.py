"""Tiny sweeps for as long as one likes, killed at random: does anything leak, and are the figures those of a sweep to
which nothing happens?

    python benchmarks/soak.py --minutes 60

Two kinds of sweeps take turns. Commands are killed with ``kill -9``, they or their workers or both, and resumed; every
ten minutes a command is started as users start it, the others are forked from a process that has imported everything.
And one process that lives as long as the soak, this one, calls ``harness.run`` again and again while its workers are
killed; its memory, open files and threads must stay as they are.

Prints a summary as JSON; exits with 1 if anything is left behind, grows or differs. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

TESTS = Path(__file__).resolve().parents[1] / "tests"
PLUGIN = TESTS / "faults" / "plugin"
sys.path[:0] = [str(TESTS / "support"), str(TESTS / "faults"), str(PLUGIN)]
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(PLUGIN)}

import psutil  # noqa: E402
from bench import WHOLE, Bench, Figures, processes_below  # noqa: E402
from kills import LATEST_S, Victim, survive  # noqa: E402
from warm_commands import Commands  # noqa: E402
from warm_workers import Workers  # noqa: E402

import harness  # noqa: E402
from harness.execution import local  # noqa: E402

VICTIMS: tuple[Victim, ...] = ("parent", "worker", "both")
KILLS = 6
"""Kills in one round of commands."""
CALLS = 4
"""Sweeps of the long-lived process in one round."""
COLD_EVERY_S = 600.0
WARM_UP = 0.25
"""The part of the long-lived process's sweeps whose memory is not compared: it imports and fills its caches."""
GROWTH_BYTES = 8 * 2**20
"""How much more memory the process may use at the end than after warming up."""


@dataclass
class Usage:
    """What the long-lived process used after each of its sweeps."""

    memory_bytes: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def take(self) -> None:
        own = psutil.Process()
        self.memory_bytes.append(own.memory_info().rss)
        self.files.append(own.num_fds())
        self.threads.append(own.num_threads())

    def ends(self, values: list[int]) -> tuple[float, float]:
        """The medians of the first and the last quarter after warming up."""
        warm = values[int(len(values) * WARM_UP) :]
        quarter = max(len(warm) // 4, 1)
        return statistics.median(warm[:quarter]), statistics.median(warm[-quarter:])


@dataclass
class Soak:
    """One soak: where it runs, and what it has seen."""

    folder: Path
    commands: Commands
    workers: Workers
    draws: random.Random
    undisturbed: Figures = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VICTIMS, 0))
    sweeps: int = 0
    calls: int = 0
    calls_killed: int = 0
    usage: Usage = field(default_factory=Usage)
    problems: list[str] = field(default_factory=list)
    _benches: int = 0

    def bench(self) -> Bench:
        """A new bench in the place of the last one."""
        shutil.rmtree(self.folder / str(self._benches), ignore_errors=True)
        self._benches += 1
        return Bench(self.folder / str(self._benches), self.commands, TESTS / "data" / "tiny-llama", WHOLE)

    def attempt(self, what: str, do: Callable[[], object]) -> None:
        """Does something; what goes wrong becomes a problem, with what repeats it."""
        try:
            do()
        except AssertionError:
            self.problems.append(f"{what}: {traceback.format_exc(limit=-2)}")
            print(self.problems[-1], file=sys.stderr)  # at once: whoever watches may stop the soak
            for process in processes_below(self.commands.pid):
                process.kill()

    def kill_commands(self, cold: bool = False) -> None:
        victim, seed = self.draws.choice(VICTIMS), self.draws.randrange(2**32)
        kills = 1 if cold else KILLS

        def do() -> None:
            self.sweeps += survive(victim, kills, seed, self.bench, self.undisturbed, cold)
            self.kills[victim] += kills

        self.attempt(f"kill {victim} seed {seed} cold {cold}", do)

    def call(self) -> None:
        """``harness.run`` in this process, until every run has succeeded; a worker of the first call may be killed."""
        bench = self.bench()
        recipe = bench.recipe()
        tempfile.tempdir = str(bench.temporary)
        timer = threading.Timer(self.draws.uniform(0, LATEST_S), self._kill_worker)
        if self.draws.random() < 0.5:
            timer.start()
        for _ in range(2):
            records = harness.run(recipe, bench.results, bench.cache)
            timer.cancel()
            if all(record.status == "ok" for record in records):
                break
        timer.join() if timer.ident else None
        bench.check(self.undisturbed)
        assert processes_below(self.workers_pid) == []
        self.calls += 1
        self.usage.take()

    @property
    def workers_pid(self) -> int:
        """The process that the workers of this process are forked from."""
        (pid,) = self.workers.pids
        return pid

    def _kill_worker(self) -> None:
        for process in processes_below(self.workers_pid, patience_s=0.0):
            process.kill()
            self.calls_killed += 1

    def summary(self) -> dict[str, object]:
        memory, files, threads = (
            self.usage.ends(values) for values in (self.usage.memory_bytes, self.usage.files, self.usage.threads)
        )
        if memory[1] - memory[0] > GROWTH_BYTES:
            self.problems.append(f"memory grew from {memory[0]:.0f} to {memory[1]:.0f} bytes")
        if files[0] != files[1]:
            self.problems.append(f"open files went from {files[0]:g} to {files[1]:g}")
        if threads[0] != threads[1]:
            self.problems.append(f"threads went from {threads[0]:g} to {threads[1]:g}")
        return {
            "sweeps_of_commands": self.sweeps,
            "kills": self.kills,
            "sweeps_of_one_process": self.calls,
            "workers_killed_of_that_process": self.calls_killed,
            "memory_bytes": memory,
            "open_files": files,
            "threads": threads,
            "problems": self.problems,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of victims and instants")
    options = parser.parse_args()
    began = time.monotonic()
    end = began + options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(name, "kernels"))
        soak = Soak(Path(name), Commands([PLUGIN]), Workers(), random.Random(options.seed))
        setattr(local, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": soak.workers.start}))  # noqa: B010
        first = soak.bench()
        ended = first.run()
        assert ended.code == 0, ended.output
        soak.undisturbed = first.figures()
        next_cold = began + COLD_EVERY_S
        while time.monotonic() < end:
            soak.kill_commands()
            for index in range(CALLS):
                soak.attempt(f"call {soak.calls + index}", soak.call)
            if time.monotonic() > next_cold:
                soak.kill_commands(cold=True)
                next_cold += COLD_EVERY_S
            print(f"{(time.monotonic() - began) / 60:.1f} min, {soak.sweeps + soak.calls} sweeps, "
                  f"{len(soak.problems)} problems", file=sys.stderr)  # fmt: skip
        summary = {"minutes": (time.monotonic() - began) / 60, "seed": options.seed, **soak.summary()}
        tempfile.tempdir = None
        soak.commands.close()
        soak.workers.close()
    print(json.dumps(summary, indent=1))
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
