"""Whether processes end, told from those that keep running."""

from __future__ import annotations

import psutil

from harness.host.process import still_running

PATIENCE_S = 300.0
"""Far more than it takes on a busy machine."""


def has_ended(process: psutil.Process) -> bool:
    """Waits until it has. Nobody need reap it: process 1 of many containers reaps no orphan."""
    return not still_running([process], PATIENCE_S)
