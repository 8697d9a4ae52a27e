"""Output for people and programs: tables, plots, and one renderer per output format."""

from harness.report.write import FORMATS, write_report

__all__ = ["FORMATS", "write_report"]
