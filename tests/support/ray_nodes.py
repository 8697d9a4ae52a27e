"""A real Ray cluster of a test's own: a head that runs nothing, and nodes in processes of their own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from harness.execution.ray_cluster import ENVIRONMENT

OBJECT_STORE_BYTES = 80 * 2**20
START_S = 300.0
END_S = 20.0


class RealCluster:
    """Its address, and its nodes by Ray's id."""

    def __init__(self, nodes: int) -> None:
        os.environ.update(ENVIRONMENT)
        from ray.cluster_utils import Cluster

        own = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **own})
        self._nodes = {node.node_id: node for node in (self._cluster.add_node(num_cpus=1, **own) for _ in range(nodes))}
        self._elsewhere: list[subprocess.Popen[bytes]] = []
        self.address: str = self._cluster.address

    def kill(self, ray_id: str) -> None:
        """Ends a node with all that runs there, as a crash of its machine does."""
        node = self._nodes.pop(ray_id)
        (raylet,) = node.all_processes["raylet"]
        for process in psutil.Process(raylet.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def add_other(self, seen: Mapping[Path, Path], **variables: str) -> None:
        """Adds a node that sees, at each path, what is at another one, and has other variables in its environment.

        Skips where mounting is not allowed.
        """
        unshare = shutil.which("unshare")
        if unshare is None or subprocess.run([unshare, "--mount", "true"], check=False, capture_output=True).returncode:
            pytest.skip("needs a mount namespace of its own (unshare --mount), which takes root")
        mounts = [f"mount --bind {shlex.quote(str(there))} {shlex.quote(str(at))}" for at, there in seen.items()]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={self.address}", "--num-cpus=1"]
        ray += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--block", "--disable-usage-stats"]
        script = " && ".join([*mounts, f"exec {shlex.join(ray)}"])
        before = self._living()
        self._elsewhere.append(
            subprocess.Popen(
                [unshare, "--mount", "sh", "-c", script],
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **variables},
            )
        )
        limit_s = time.monotonic() + START_S
        while self._living() <= before:
            assert self._elsewhere[-1].poll() is None, "the node has ended"
            assert time.monotonic() < limit_s, "the node does not join the cluster"
            time.sleep(0.2)

    def remove_others(self) -> None:
        while self._elsewhere:
            process = self._elsewhere.pop()
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.terminate()
            for each in psutil.wait_procs(family, timeout=END_S)[1]:
                each.kill()
            process.wait()
        limit_s = time.monotonic() + START_S
        while self._living() > len(self._nodes) + 1 and time.monotonic() < limit_s:
            time.sleep(0.2)

    def close(self) -> None:
        self.remove_others()
        self._cluster.shutdown()

    def _living(self) -> int:
        return sum(node["Alive"] for node in self._cluster.global_state.node_table())
