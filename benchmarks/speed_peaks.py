"""Peaks of runs that time batches, beside those that a plan expects: ``python benchmarks/speed_peaks.py``.

It writes random float32 weights in the shape of a Llama and times each grid in a process of its own, as a sweep does.
Prints for each the planned peak, the largest resident set of its phases, and their ratio: what
docs/measurements/streaming.md records. Exits with 1, and says which, if a run failed or took more than was planned.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from quantizing_peaks import SHAPES, Shape
from streaming import write_model

from harness.execution.executors import THIS_MACHINE, open_executor
from harness.execution.local import local_site
from harness.execution.sweep import sweep
from harness.planning.plan import plan
from harness.recipe import load_recipe
from harness.storage.store import Store

GRIDS = {"long": (1, 2048), "wide": (16, 512)}
"""Batch sizes and prompts in tokens."""
NEW_TOKENS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small"])
    parser.add_argument("--grids", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    faults: list[str] = []
    print("| model | batch × prompt | planned (GB) | measured (GB) | planned / measured |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name in asked.shapes:
        with tempfile.TemporaryDirectory() as folder:
            write_model(SHAPES[name].config, Path(folder) / "model")
            for grid in asked.grids:
                faults += _timed(SHAPES[name], *GRIDS[grid], asked.threads, Path(folder))
    for fault in faults:
        print(f"fault: {fault}")
    sys.exit(1 if faults else 0)


def _timed(shape: Shape, batch: int, prompt: int, threads: int, place: Path) -> list[str]:
    """Prints a row; returns what is wrong with it."""
    grid = {"batch_sizes": [batch], "prompt_tokens": [prompt], "new_tokens": NEW_TOKENS, "warmup": 1, "iterations": 1}
    content = {
        "name": f"peaks-{batch}-{prompt}",
        "models": [{"id": str(place / "model"), "label": "random"}],
        "methods": ["none"],
        "measure": {"throughput": grid, "memory": {}},
        "repetitions": 1,
        "threads": threads,
        "device": "cpu",
    }
    recipe = place / "recipe.json"
    recipe.write_text(json.dumps(content), encoding="utf-8")
    site = local_site(place / "cache")
    (run,) = (run for run in plan(load_recipe(recipe), site) if run.spec.kind == "performance")
    with closing(open_executor(THIS_MACHINE, site)) as executor:
        (record,) = sweep([run], Store(place / "results"), executor, lambda event: None)
    what = f"{batch} × {prompt}"
    if record.status != "ok":
        return [f"{shape.title}: {what}: {record.outcome.failure}"]
    peaks = [max(each.values) for each in record.outcome.measurements if each.metric == "peak_memory_bytes"]
    measured, expected = max(peaks), run.peak_bytes or 0
    model = shape.title.partition(";")[0]
    print(f"| {model} | {what} | {expected / 1e9:.2f} | {measured / 1e9:.2f} | {expected / measured:.2f} |", flush=True)
    return [f"{model}: {what}: took more than planned"] if measured > expected else []


if __name__ == "__main__":
    main()
