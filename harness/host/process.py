"""Processes that carry their owner in their environment, so that those of a dead owner are found and ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator

import psutil

from harness.core.owner import owner_in
from harness.host.shared_memory import Shared, delete_shared, find_shared

MARKER = "QHARNESS_OWNER"
"""The environment variable with the name of the run's temporary folder, which names the owner. A worker starts with it,
and so does whatever it starts, unless it clears the environment."""
PATIENCE_S = 5.0
"""How long killed processes may take to end."""
PAUSE_S = 0.01
ROUNDS = 3
"""How often processes are looked for anew, because some may have been started meanwhile."""


def is_running(process: psutil.Process) -> bool:
    """Whether any of its threads runs. A zombie has ended: in a container without an init, nobody reaps an orphan.

    A zombie whose other threads have not ended yet still holds its memory and its files.
    """
    try:
        return bool(process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1))
    except psutil.Error:
        return False


def still_running(processes: Iterable[psutil.Process], patience_s: float) -> list[psutil.Process]:
    """Waits until all have ended, and returns those that have not after ``patience_s``. Reaps none."""
    deadline_s = time.monotonic() + patience_s
    while (left := [each for each in processes if is_running(each)]) and time.monotonic() < deadline_s:
        time.sleep(PAUSE_S)
    return left


def end_run(mark: str) -> int:
    """Ends the processes that carry exactly this mark, all below them, and their shared memory; returns how many."""
    return _end(lambda found: found == mark)


def end_leftovers() -> int:
    """Ends this user's processes whose owner is dead, all below them, and their shared memory; returns how many.

    Processes of a living owner, of another user or of another machine are left alone.
    """
    return _end(_is_left)


def _is_left(mark: str) -> bool:
    owner = owner_in(mark)
    return owner is not None and owner.state() == "dead"


def _end(wanted: Callable[[str], bool]) -> int:
    ended: set[int] = set()
    shared: set[Shared] = set()
    for _ in range(ROUNDS):
        found = {process.pid: process for top in _marked(wanted) for process in (top, *_below(top))}
        if not found:
            break
        shared |= find_shared(found, younger=True)  # nobody knows what was there before them
        for process in found.values():
            try:
                process.kill()  # psutil makes sure that the number has not been given to another
            except psutil.Error:
                continue
        ended |= found.keys()
        still_running(found.values(), PATIENCE_S)
    delete_shared(shared)
    return len(ended)


def _marked(wanted: Callable[[str], bool]) -> Iterator[psutil.Process]:
    """This user's processes whose mark is wanted, except this process and those above it."""
    spared = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            if process.pid in spared or process.uids().real != os.getuid():
                continue
            mark = process.environ().get(MARKER)
            if mark is not None and wanted(mark) and is_running(process):
                yield process
        except (psutil.Error, OSError):  # it ended, or may not be read
            continue


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []
