"""The command line: one file per command in ``commands``, their output in ``render``."""

from harness.cli.app import main

__all__ = ["main"]
