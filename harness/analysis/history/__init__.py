"""Figures over time: ``trace`` takes records of many sessions, returns series with their change points; no files."""
