"""A server runs as long as its context, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest
import urllib3
from endings import has_ended

from harness.errors import RunError, UnsupportedError
from harness.host.process import is_running
from harness.libraries import serving as module
from harness.libraries.serving import HOST, LOG, _end, free_port, serving

pytestmark = pytest.mark.heavy

PROGRAM = Path(__file__).parents[1] / "support" / "http_child.py"


def started(folder: Path, port: int) -> AbstractContextManager[None]:
    command = [sys.executable, str(PROGRAM), str(port)]
    return serving(command, {"PYTHONUNBUFFERED": "1"}, f"http://{HOST}:{port}/health", folder)


def child(folder: Path) -> int:
    """The process that the server started in a session of its own."""
    return int((folder / LOG).read_text().split()[1])


def runs(pid: int) -> bool:
    """Not a zombie: as an orphan it may stay one."""
    return psutil.pid_exists(pid) and is_running(psutil.Process(pid))


def test_it_answers_inside_and_is_gone_afterwards_with_what_it_started(tmp_path: Path) -> None:
    port = free_port()
    with started(tmp_path, port):
        assert urllib3.request("GET", f"http://{HOST}:{port}/health", retries=False).status == 200
        assert runs(child(tmp_path))
    assert not runs(child(tmp_path))
    with pytest.raises(urllib3.exceptions.HTTPError):
        urllib3.request("GET", f"http://{HOST}:{port}/health", retries=False)


def test_it_is_ended_when_the_caller_fails_and_the_failure_stays(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), started(tmp_path, free_port()):
        raise ZeroDivisionError
    assert not runs(child(tmp_path))


def end(folder: Path, port: int) -> None:
    """Has the server end by itself, and waits until it has."""
    server = psutil.Process(psutil.Process(child(folder)).ppid())
    urllib3.request("GET", f"http://{HOST}:{port}/end", retries=False)
    assert has_ended(server)


@pytest.mark.parametrize("failing", [False, True])
def test_a_server_that_ends_too_early_is_the_reason_with_the_end_of_its_log(tmp_path: Path, failing: bool) -> None:
    def measure() -> None:
        port = free_port()
        with started(tmp_path, port):
            end(tmp_path, port)
            if failing:
                raise ConnectionError("the server is gone")

    with pytest.raises(RunError, match=r"ended while it was measured: exit code 3: child \d+ \| told to end"):
        measure()
    assert not runs(child(tmp_path))


@pytest.mark.parametrize(
    ("said", "raised"),
    [("this model is unknown", UnsupportedError), ("DefaultCPUAllocator: out of memory", MemoryError)],
)
def test_one_that_does_not_start_is_unsupported_or_lacks_memory(
    tmp_path: Path, said: str, raised: type[Exception]
) -> None:
    command = [sys.executable, "-c", f"raise SystemExit({said!r})"]
    with pytest.raises(raised, match=said), serving(command, {}, f"http://{HOST}:{free_port()}/health", tmp_path):
        pass


def test_one_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_S", 0.3)
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    ready = f"http://{HOST}:{free_port()}/health"
    with pytest.raises(RunError, match="did not answer"), serving(command, {}, ready, tmp_path):
        pass


def test_a_server_has_a_group_of_its_own_in_the_session_of_its_run(tmp_path: Path) -> None:
    with started(tmp_path, free_port()):
        server = psutil.Process(child(tmp_path)).ppid()
        assert (os.getpgid(server), os.getsid(server)) == (server, os.getsid(0))


def test_a_process_that_was_given_the_servers_number_is_left_alone() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
    try:
        server = psutil.Process(stranger.pid)
        server._pid_reused = True  # what psutil finds where the number's process began at another time
        _end(ended, server, [])
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
