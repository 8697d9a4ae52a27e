"""Runs a Python module in a process of its own and ends with it everything that the module started.

``python .../guard.py PARENT_PID MODULE ARGUMENT…`` becomes the parent of all that the module leaves behind (on Linux a
"child subreaper"), so no daemon outlives it: one with a session, a name and an environment of its own is still a
descendant. It exits as the module's process did, with the same code or by the same signal.

- SIGTERM ends the module.
- If the process that started the guard ends, for whatever reason, the module ends too (PR_SET_PDEATHSIG). The kernel
  watches the *thread* that started the guard, so that thread must wait for it, as ``subprocess.run`` does.
- If the guard itself is killed, the module's process ends with it; what else it started is found by its environment
  when the harness starts again (``harness.host.process``).
- Shared memory that the module and what it started had mapped when they were ended goes with them, unless it was there
  before them.

There is no control group: making one takes rights that users seldom have (in containers, in most batch jobs), and it
would hold nothing that a subreaper does not.

This file is started by its path, and imports only the standard library before ``prctl``.
"""

from __future__ import annotations

import ctypes
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36  # linux/prctl.h
GRACE_S = 0.5
"""How long processes that the module left may take to end by themselves, as multiprocessing's trackers do."""
PATIENCE_S = 10.0
"""How long killed processes may take to end: one that waits for a device may not end at all."""
PAUSE_S = 0.01
PARENT_GONE = 1
"""The exit code if the process that started this one has already ended."""


def main(parent: str, module: str, *arguments: str) -> None:
    watch(int(parent), lambda: run_module(module, arguments))


def run_module(module: str, arguments: Sequence[str]) -> None:
    """Runs a module as ``python -m`` does."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def watch(parent: int, run: Callable[[], None]) -> None:
    """Makes this process the guard of a fork of it, which runs and then returns from here; the guard does not."""
    end_with_parent(signal.SIGTERM, parent)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent that ignores it would leave nothing to wait for
    signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGTERM])  # until the handler knows whom to end
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        _begin_session(guard)
        run()
        return
    from harness.host.shared_memory import delete_shared, find_shared, list_shared

    shared, of_others = set(), list_shared()

    def end(*_: object) -> None:
        shared.update(find_shared([child, *_descendants()]))
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    status = _wait(child)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    shared.update(find_shared([child, *_descendants()]))
    _end_descendants(child)
    delete_shared(shared - of_others)
    _exit_like(status)


def end_with_parent(number: signal.Signals, parent: int) -> None:
    """Has the kernel send this process a signal when its parent ends; ends it now if that has happened already."""
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(PARENT_GONE)


def _begin_session(guard: int) -> None:
    end_with_parent(signal.SIGKILL, guard)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _wait(child: int) -> int:
    """The wait status of a child; other processes that end meanwhile are reaped."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            return status


def _end_descendants(child: int) -> None:
    """Waits for all that is left, kills it after ``GRACE_S``, and gives up after ``PATIENCE_S``."""
    began = time.monotonic()
    while _are_left() and (elapsed_s := time.monotonic() - began) < PATIENCE_S:
        if elapsed_s > GRACE_S:
            for pid in (-child, *_descendants()):  # the group alone where there is no /proc
                _kill(pid)
        time.sleep(PAUSE_S)
    _kill(-child)


def _are_left() -> bool:
    """Whether this process still has children; reaps those that ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return False
    return True


def _descendants() -> list[int]:
    """All processes below this one, parents first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_bytes().rpartition(b")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [os.getpid()]
    for ancestor in found:  # grows meanwhile
        found += [pid for pid, parent in parents.items() if parent == ancestor]
    return found[1:]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _exit_like(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _prctl(PR_SET_DUMPABLE, 0)  # one core file, of the module's process, is enough
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(128 + number)  # a signal that this process cannot end by
    os._exit(os.WEXITSTATUS(status))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    main(*sys.argv[1:])
