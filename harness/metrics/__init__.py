"""Measurements: one metric per file, and none imports another."""
