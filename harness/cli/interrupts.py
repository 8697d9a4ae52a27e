"""Signals that ask the command to end: Ctrl-C, SIGTERM, a terminal that closes.

To import it imports only the standard library.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
QUIET_S = 1.0
"""A signal so soon after another asks for nothing new: a terminal that closes and a batch system send several."""

_last_s = -QUIET_S


def catch() -> None:
    """Makes each signal raise KeyboardInterrupt, unless the command was started to ignore it, as by ``nohup``."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def ignore() -> None:
    """Lets no signal disturb the end of the command."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def resumable() -> Iterator[None]:
    """Within this context an interrupt ends the command, with its exit code, and says that the same command resumes."""
    try:
        yield
    except KeyboardInterrupt:
        ignore()
        import typer

        from harness.errors import ExitCode
        from harness.report.terminal import say

        say("interrupted; run the same command to resume", error=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _last_s
    now_s = time.monotonic()
    if now_s - _last_s >= QUIET_S:
        _last_s = now_s
        raise KeyboardInterrupt
