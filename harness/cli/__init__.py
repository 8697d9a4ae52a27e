"""The command line, one file per command."""

from harness.cli.app import main

__all__ = ["main"]
