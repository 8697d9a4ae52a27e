"""The command line: one file per command in ``commands``, what they print in ``render``."""

from harness.cli.app import main

__all__ = ["main"]
