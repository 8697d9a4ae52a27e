"""Figures over time: records of many sessions in, series with their change points out; no files."""

from harness.analysis.history.series import Change, Failed, History, Point, Series
from harness.analysis.history.trace import trace

__all__ = ["Change", "Failed", "History", "Point", "Series", "trace"]
