"""What the harness adds: a sweep beside the sum of bare scripts that load and measure the same.

``python benchmarks/overhead.py [--recipe RECIPE] [--repeat N]`` runs a recipe from nothing, with results and a cache of
its own, and then executes each of its runs once more in a script: a process that imports what the run needs, executes
the run's job, and exits. No parent watches it, nothing is hashed, recorded or stored, and nothing is imported ahead.
With ``--spawn`` the sweep starts every process anew, as ``QHARNESS_START=spawn`` does.

Printed are the seconds of both, their ratio, and by how much each run took longer than its phases. A script that does
not measure what the run's record holds ends the comparison. Exits with 1, and says why, if a bar was missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from harness.core.record import Measurement
from harness.core.run import RunSpec
from harness.errors import ExitCode
from harness.storage.cache import Cache
from harness.storage.json_codec import decode, encode

# Scripts run this file too: what only the comparison needs is imported there.
ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
COMMAND = [sys.executable, "-m", "harness"]
RATIO_BAR, BEYOND_BAR_S = 1.10, 1.0
"""At most so many times the scripts' seconds, and fewer beyond the phases of a run: in the mean, because what a server
imports for many runs is in the time of the first."""
SAME = 1e-4
"""By how much the mean of values of one item each may differ, relatively: the same sums, in another process."""
MEASURED = "measured.json"
TIMED = {"bandwidth_byte_per_s", "matmul_op_per_s"}
"""Measured for as long as a limit of time, so that nothing says how many values there are."""
Figures = Mapping[str, tuple[int, float]]
"""By metric: how many values were measured, and the mean of those that belong to items of a text or a task."""


def bare(spec_file: Path, cache: Path, out: Path) -> None:
    """What a script of a user's own would do: load the variant, and measure."""
    from harness.execution.context import Context
    from harness.execution.import_guard import skip_unused_imports

    spec = decode(RunSpec, json.loads(spec_file.read_text(encoding="utf-8")), spec_file.name)
    skip_unused_imports(())  # as a user has them who installed nothing else
    context = Context(spec, Cache(cache), lambda phase: None)
    if spec.job.conditions.threads is not None:
        import torch

        torch.set_num_threads(spec.job.conditions.threads)
    import_module(f"harness.execution.jobs.{spec.kind}").run(spec.job, context, out)
    spec_file.with_name(MEASURED).write_text(json.dumps(figures(context.findings())), encoding="utf-8")
    os._exit(0)


def figures(measurements: Iterable[Measurement]) -> Figures:
    counts, sums = Counter[str](), defaultdict[str, float](float)
    for each in measurements:
        counts[each.metric] += len(each.values)
        sums[each.metric] += sum(each.values) if each.evidence == "paired" else 0.0
    return {metric: (count, sums[metric] / count) for metric, count in counts.items()}


def differ(one: Figures, other: Figures) -> list[str]:
    """The metrics of which not the same was measured."""
    every = {*one, *other} - TIMED
    return sorted(
        metric
        for metric in every
        if metric not in one
        or metric not in other
        or one[metric][0] != other[metric][0]
        or not math.isclose(one[metric][1], other[metric][1], rel_tol=SAME, abs_tol=1e-9)
    )


def sweep_s(recipe: Path, folder: Path, spawn: bool) -> float:
    """The seconds of ``qharness run``, those of runs that fail included; raises CalledProcessError if it makes none."""
    from harness.execution.starter import SPAWN, VARIABLE

    began = time.perf_counter()
    command = [*COMMAND, "run", str(recipe), "--results", str(folder / "results"), "--cache", str(folder / "cache")]
    variables = {**os.environ, VARIABLE: SPAWN if spawn else ""}
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, env=variables, check=False)
    if ended.returncode not in (ExitCode.OK, ExitCode.RUNS_FAILED):
        ended.check_returncode()
    return time.perf_counter() - began


def bare_s(spec: RunSpec, cache: Path) -> tuple[float, Figures]:
    """The seconds of the script that does what a run does, and what it measured.

    Raises CalledProcessError if it fails.
    """
    with tempfile.TemporaryDirectory() as own:
        written, out = Path(own, "spec.json"), Path(own, "out")
        written.write_text(encode(spec), encoding="utf-8")
        out.mkdir()
        python, variables = _interpreter(spec.stack, Path(own), cache)
        command = [python, __file__, "--bare", str(written), str(cache), str(out)]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=variables)
        took_s = time.perf_counter() - began
        return took_s, json.loads(written.with_name(MEASURED).read_text(encoding="utf-8"))


def _interpreter(stack: str, own: Path, cache: Path) -> tuple[str, Mapping[str, str]]:
    from harness.core.site import MAIN
    from harness.execution.local import ENVIRONMENT, local_site
    from harness.stacks.build import environment

    if stack == MAIN:
        return sys.executable, {**os.environ, **ENVIRONMENT}
    return str(local_site(cache).stacks.find(stack).python), {**environment(own), **ENVIRONMENT}


@dataclass(frozen=True)
class Overhead:
    """The ratio of a sweep's seconds to those of the scripts, and a run's mean seconds beyond its phases."""

    ratio: float
    beyond_s: float

    def missed(self) -> Iterator[str]:
        if self.ratio > RATIO_BAR:
            yield f"{self.ratio:.3f} times the scripts' seconds; the bar is {RATIO_BAR:.2f}"
        if self.beyond_s >= BEYOND_BAR_S:
            yield f"{self.beyond_s:.2f} s beyond the phases of a run in the mean; the bar is {BEYOND_BAR_S:g} s"


def compare(recipe: Path, spawn: bool) -> Overhead:
    """The overhead of a sweep from nothing."""
    from harness.execution.local import local_site
    from harness.planning.plan import plan
    from harness.recipe import load_recipe
    from harness.storage.store import Store

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        whole = sweep_s(recipe, here, spawn)
        (name,) = (each.name for each in (here / "results").iterdir() if each.is_dir())
        found = Store(here / "results").read(name).records
        for each in found:
            if each.outcome.failure is not None and each.status != "unsupported":
                print(f"{each.spec.title}: {each.status}, and not compared: {each.outcome.failure.message}", flush=True)
        made = {each.spec.run_id: each for each in found if each.status == "ok"}
        chosen = load_recipe(recipe)
        planned = plan(chosen, local_site(here / "cache", device=chosen.device))
        specs = [run.spec for run in planned if run.spec.run_id in made]  # those of records name no paths
        records = [made[spec.run_id] for spec in specs]
        scripts = []
        for spec, record in zip(specs, records, strict=True):
            took_s, measured = bare_s(spec, here / "cache")
            if unlike := differ(measured, figures(record.outcome.measurements)):
                sys.exit(f"{spec.title}: the script does not measure the same: {', '.join(unlike)}")
            scripts.append(took_s)
    beyond = [record.wall_s - sum(phase.wall_s for phase in record.outcome.phases) for record in records]
    for record, script, more in zip(records, scripts, beyond, strict=True):
        took = f"run {record.wall_s:7.2f} s  script {script:7.2f} s  beyond phases {more:5.2f} s"
        print(f"{record.spec.title[:48]:48s} {took}")
    of_runs = f"beyond their phases: median {statistics.median(beyond):.2f} s, in all {sum(beyond):.1f} s"
    ratio = whole / sum(scripts)
    print(f"sweep {whole:.1f} s, scripts {sum(scripts):.1f} s: ratio {ratio:.3f}; {of_runs}", flush=True)
    return Overhead(ratio, statistics.mean(beyond))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=QUICKSTART)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--spawn", action="store_true")
    parser.add_argument("--bare", nargs=3, type=Path, metavar=("SPEC", "CACHE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare(*arguments.bare)
        return
    found = [compare(arguments.recipe, arguments.spawn) for _ in range(arguments.repeat)]
    print(f"{arguments.recipe.name}: {', '.join(f'{each.ratio:.3f}' for each in found)}")
    missed = [fault for each in found for fault in each.missed()]
    for fault in missed:
        print(f"missed: {fault}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
