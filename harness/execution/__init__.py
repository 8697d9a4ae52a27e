"""Runs a plan: one child process per run, its outcome recorded whatever becomes of it."""
