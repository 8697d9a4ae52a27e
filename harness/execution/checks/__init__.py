"""Checks of whether the figures of a run can be trusted, one per file."""
