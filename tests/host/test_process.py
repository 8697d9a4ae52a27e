"""A process that nobody reaps has ended, as orphans in a container whose process 1 reaps nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from harness.core.owner import current_owner
from harness.host import process as module
from harness.host.process import MARKER, end_run, is_running, still_running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads what the kernel of Linux says")

PATIENCE_S = 600.0
MARK = f"qharness-{current_owner()}-zombie"
PARENT = f"""
import subprocess, sys
command = [sys.executable, "-S", "-c", sys.argv[1]]
child = subprocess.Popen(command, stdout=subprocess.PIPE, env={{"{MARKER}": "{MARK}"}})
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""
SLEEP = "import time; print(flush=True); time.sleep(600)"
LAST_THREAD = f"""
import ctypes, threading
def last():
    while ") Z" not in open("/proc/self/stat").read():
        pass
    {SLEEP}
threading.Thread(target=last).start()
ctypes.CDLL(None).syscall({60 if os.uname().machine == "x86_64" else 93}, 0)  # exit, of this thread alone
"""


@pytest.fixture
def unreaped() -> Iterator[ExitStack]:
    with ExitStack() as parents:
        yield parents


def start(parents: ExitStack, code: str) -> psutil.Process:
    """A process whose parent lives and never reaps it."""
    command = [sys.executable, "-S", "-c", PARENT, code]
    parent = parents.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    parents.callback(parent.kill)
    assert parent.stdout is not None
    return psutil.Process(int(parent.stdout.readline()))


def test_a_zombie_has_ended(unreaped: ExitStack) -> None:
    process = start(unreaped, SLEEP)
    assert is_running(process)
    assert still_running([process], 0.0) == [process]
    process.kill()
    assert still_running([process], PATIENCE_S) == []
    assert process.status() == psutil.STATUS_ZOMBIE


def test_not_as_long_as_one_of_its_threads_runs(unreaped: ExitStack) -> None:
    """It still has its memory, also a GPU's."""
    process = start(unreaped, LAST_THREAD)
    assert process.status() == psutil.STATUS_ZOMBIE
    assert is_running(process)
    process.kill()
    assert still_running([process], PATIENCE_S) == []


def test_what_a_run_left_is_ended_without_waiting_for_someone_to_reap_it(
    unreaped: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", PATIENCE_S)
    process = start(unreaped, SLEEP)
    assert end_run(MARK) == 1
    assert not is_running(process)
    assert end_run(MARK) == 0
