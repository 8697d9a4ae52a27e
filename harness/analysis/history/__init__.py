"""Figures over time: records of many sessions in, series with their change points out; no files."""

from harness.analysis.history.series import Failed, History, LevelChange, Point, Series
from harness.analysis.history.trace import trace

__all__ = ["Failed", "History", "LevelChange", "Point", "Series", "trace"]
