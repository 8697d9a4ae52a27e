"""Processes that carry their owner in their environment, so that those of a dead owner are found and ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import psutil

from harness.core.owner import owner_in
from harness.host.shared_memory import Shared, delete_shared, find_shared

MARKER = "QHARNESS_OWNER"
"""The environment variable with the name of the run's temporary folder, which names the owner. A worker starts with it,
and so does whatever it starts, unless it clears the environment."""
PATIENCE_S = 5.0
"""How long killed processes may take to end."""
ROUNDS = 3
"""How often processes are looked for anew, because some may have been started meanwhile."""


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
        psutil.wait_procs(list(found.values()), PATIENCE_S)
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
            if mark is not None and wanted(mark) and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, OSError):  # it ended, or may not be read
            continue


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []
