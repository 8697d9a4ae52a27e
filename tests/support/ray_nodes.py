"""A real Ray cluster of a test's own: a head that runs nothing, and nodes in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from other_files import seeing

from harness.execution import starter
from harness.execution.ray_cluster import ENVIRONMENT

OBJECT_STORE_BYTES = 80 * 2**20
PATIENCE_S = 300.0
END_S = 20.0


class RealCluster:
    """Its address, and its nodes by Ray's id. Nodes start workers as users' do: each forks them from a server."""

    def __init__(self, nodes: int) -> None:
        os.environ.update(ENVIRONMENT)
        from ray.cluster_utils import Cluster

        own = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(starter.VARIABLE, starter.FORK)
            self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **own})
            added = [self._cluster.add_node(num_cpus=1, **own) for _ in range(nodes)]
        self._nodes = {node.node_id: node for node in added}
        self.address: str = self._cluster.address

    def kill(self, ray_id: str) -> None:
        """Ends a node with all that runs there, as a crash of its machine does."""
        node = self._nodes.pop(ray_id)
        (raylet,) = node.all_processes["raylet"]
        for process in psutil.Process(raylet.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    @contextmanager
    def another(self, seen: Mapping[Path, Path], **variables: str) -> Iterator[None]:
        """With a further node that sees, at each path, what is at another one, and has more variables.

        Skips where mounting is not allowed.
        """
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={self.address}", "--num-cpus=1"]
        ray += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--block", "--disable-usage-stats"]
        before = self._living()
        process = subprocess.Popen(
            [*seeing(seen), *ray],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, starter.VARIABLE: starter.FORK, **variables},
        )
        try:
            self._wait(lambda: self._living() > before or process.poll() is not None)
            assert process.poll() is None, "the node has ended"
            yield
        finally:
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.terminate()
            for each in psutil.wait_procs(family, timeout=END_S)[1]:
                each.kill()
            process.wait()
            self._wait(lambda: self._living() == before)

    def close(self) -> None:
        self._cluster.shutdown()

    def _wait(self, done: Callable[[], bool]) -> None:
        limit_s = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < limit_s, "the cluster's head does not notice it"
            time.sleep(0.2)

    def _living(self) -> int:
        return sum(node["Alive"] for node in self._cluster.global_state.node_table())
