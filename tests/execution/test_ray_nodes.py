"""What the Ray executor decides without a cluster: which nodes it uses, and which addresses it refuses at once."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.execution.executors import ExecutorChoice, open_executor
from harness.execution.local import local_site
from harness.execution.ray_cluster import (
    HTTP2_SETTINGS,
    Agent,
    RayExecutor,
    _refuse_unreachable,
    _restore_environment,
    _usable_nodes,
)
from harness.storage.cache import Cache


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": {"memory": 2e9, **resources}}


CLUSTER = [
    node("head"),
    node("c", CPU=8.0),
    node("b", CPU=8.0, GPU=4.0),
    node("a", CPU=8.0, GPU=4.0),
    node("d", False, CPU=8.0),
]


@pytest.mark.parametrize(("device", "used"), [("cpu", "abc"), ("cuda", "ab"), ("auto", "ab")])
def test_nodes_that_live_and_have_the_device_are_used(device: str, used: str) -> None:
    assert [each.ray_id for each in _usable_nodes(CLUSTER, device)] == list(used)


def test_auto_takes_the_cpu_where_no_node_has_a_gpu() -> None:
    assert [each.ray_id for each in _usable_nodes(CLUSTER[:2], "auto")] == ["c"]


@pytest.mark.parametrize(("device", "lacks"), [("cpu", "CPUs"), ("cuda", "a GPU")])
def test_a_cluster_that_can_run_nothing_is_refused(device: str, lacks: str) -> None:
    with pytest.raises(UsageError, match=f"no node of the cluster has {lacks}"):
        _usable_nodes([node("head"), node("gone", False, CPU=8.0, GPU=1.0)], device)


def test_a_cache_folder_that_takes_no_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    executor = object.__new__(RayExecutor)
    executor._artifacts = Cache(tmp_path / "file" / "cache")
    with pytest.raises(UsageError, match=r"--cache .*/file/cache: takes no files \(Not a directory\); "):
        executor._refuse_unseen_cache()


@pytest.mark.parametrize(
    ("answer", "is_refused"), [(HTTP2_SETTINGS, False), (b"HTTP/1.1 400 Bad Request", True), (b"", True)]
)
def test_an_address_where_no_cluster_listens_is_refused_at_once(answer: bytes, is_refused: bool) -> None:
    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(100)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UsageError, match="no Ray cluster's head") if is_refused else nullcontext():
            _refuse_unreachable(address)
        thread.join()
    with pytest.raises(UsageError, match=f"{address}: no Ray cluster can be reached there"):
        _refuse_unreachable(address)


@pytest.mark.parametrize(
    "address", ["somewhere", "somewhere:", ":6379", "host:port", "127.0.0.1:99999", "ray://host:10001"]
)
def test_an_address_that_is_no_host_and_port_is_refused(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=f"--address {address}: "):
        open_executor(ExecutorChoice("ray", address=address), local_site(tmp_path))


def test_an_agent_computes_with_the_threads_of_its_machine_not_those_that_ray_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = Path(f"/proc/{os.getppid()}/environ").read_text(errors="replace").split("\0")
    own = next((line.partition("=")[2] for line in given if line.startswith("OMP_NUM_THREADS=")), None)
    monkeypatch.setattr(os, "environ", {**os.environ, "OMP_NUM_THREADS": "77", "RAY_JOB_ID": "01000000"})
    _restore_environment()
    assert os.environ.get("OMP_NUM_THREADS") == own
    assert os.environ["RAY_JOB_ID"] == "01000000"


def test_an_agent_names_what_its_machine_lacks(tmp_path: Path) -> None:
    agent = object.__new__(Agent)  # without its executor
    there, absent = tmp_path / "there", tmp_path / "absent"
    there.touch()
    assert agent.find_absent([str(there), str(absent)]) == (str(absent),)
