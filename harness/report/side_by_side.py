"""Two tasks at once on two cores: the second in a fork of this process, which has all that was read without a copy."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import NoReturn, TypeVar

from harness.host.machine import cores

T = TypeVar("T")
U = TypeVar("U")


def side_by_side(here: Callable[[], T], there: Callable[[], U]) -> tuple[T, U]:
    """What both return. ``there`` changes nothing in this process, and what it returns is pickled.

    A fork that ends without an answer costs time only: ``there`` is then called here, where its error is raised. So it
    is with one core, on systems other than Linux, where no process may be added, and beside other threads, whose locks
    would stay locked in a fork.
    """
    if sys.platform != "linux" or cores() < 2 or threading.active_count() > 1:
        return here(), there()
    reader, writer = os.pipe()
    try:
        with warnings.catch_warnings():  # Python 3.12 counts numpy's own threads too, which are prepared for forks
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
    except OSError:  # a limit of processes or memory
        os.close(reader)
        os.close(writer)
        return here(), there()
    if process == 0:
        os.close(reader)
        _answer(there, writer)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as file:
            mine = here()
            try:
                return mine, pickle.load(file)
            except (EOFError, pickle.UnpicklingError):
                return mine, there()
    finally:
        os.kill(process, signal.SIGKILL)  # it has answered, or is not waited for
        os.waitpid(process, 0)


def _answer(task: Callable[[], object], writer: int) -> NoReturn:
    """Ends without cleaning up what belongs to the process that this one is a fork of."""
    try:
        with os.fdopen(writer, "wb") as file:
            pickle.dump(task(), file)
    finally:
        os._exit(0)
