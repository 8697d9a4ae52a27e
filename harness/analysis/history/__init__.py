"""Figures over time: takes records of many sessions, returns series with their change points; no files."""

from harness.analysis.history.series import Failed, History, LevelChange, Point, Series
from harness.analysis.history.trace import trace

__all__ = ["Failed", "History", "LevelChange", "Point", "Series", "trace"]
