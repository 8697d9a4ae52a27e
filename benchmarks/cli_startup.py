"""Times commands that have nothing to do, beside ``python -c pass``: ``python benchmarks/cli_startup.py``.

``qharness --help``, and ``qharness run`` of recipes/quickstart.yaml when each of its runs has a record. The records are
made up: one small measurement each, as a user's results have at least. All are whole processes, run alternately so that
a slow phase of the machine affects all; minima are compared. Exits with 1, and says why, if a bar was missed on an idle
machine. docs/measurements/cli-startup.md records what it prints.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.core.record import Measurement, Outcome, RunRecord
from harness.execution.local import local_site
from harness.planning.plan import plan
from harness.recipe import load_recipe
from harness.storage.store import Store

ROUNDS = 8
QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
QHARNESS = str(Path(sys.executable).parent / "qharness")
BARS_S = {"qharness --help": 0.25, "qharness run, finished": 1.0}


def finish(results: Path, cache: Path) -> int:
    """Saves a record of every run of the quickstart; returns how many."""
    recipe = load_recipe(QUICKSTART)
    planned = plan(recipe, local_site(cache, device=recipe.device))
    measured = Measurement("made_up", 1, "nat", "lower", "paired", (1.0, 2.0), item_ids=("a", "b"))
    for run in planned:
        outcome = Outcome("ok", measurements=(measured,))
        Store(results).save(RunRecord(run.spec, outcome, "made-up", 1, "2026-01-01T00:00:00", 1.0))
    return len(planned)


def seconds(command: list[str]) -> tuple[float, float]:
    """How long a process takes by the clock, and on the processors."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, used


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results, cache = Path(folder, "results"), Path(folder, "cache")
        os.environ["QHARNESS_CACHE"] = str(cache)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it every process compiles the harness anew
        runs = finish(results, cache)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "qharness --help": [QHARNESS, "--help"],
            "qharness run, finished": [QHARNESS, "run", str(QUICKSTART), "--results", str(results)],
        }
        rounds = [{name: seconds(command) for name, command in commands.items()} for _ in range(ROUNDS)]
    print(f"{runs} runs in the quickstart; the minimum of {ROUNDS} processes each")
    bare_s = min(each["python -c pass"][0] for each in rounds)
    missed = []
    for name in commands:
        wall_s, cpu_s = (min(each[name][index] for each in rounds) for index in (0, 1))
        bar = f"  (bar {BARS_S[name]:g} s)" if name in BARS_S else ""
        print(f"{name:24} {wall_s:6.3f} s, processors {cpu_s:6.3f} s, ratio {wall_s / bare_s:5.1f}{bar}")
        if name in BARS_S and wall_s >= BARS_S[name]:
            missed.append(f"{name}: {wall_s:.3f} s; the bar is {BARS_S[name]:g} s")
    for fault in missed:
        print(f"missed: {fault}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
