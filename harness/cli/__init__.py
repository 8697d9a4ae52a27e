"""The command line: one file per command in ``commands``, their output in ``render``."""

from __future__ import annotations

import sys

from harness.cli import interrupts
from harness.errors import ExitCode


def main() -> None:
    """The ``qharness`` command. An interrupt ends it with exit code 130, also while it imports its parts."""
    interrupts.catch()
    try:
        from harness.cli.app import main as run

        run()
    except KeyboardInterrupt:
        interrupts.ignore()
        sys.exit(ExitCode.INTERRUPTED)
    finally:
        interrupts.ignore()
