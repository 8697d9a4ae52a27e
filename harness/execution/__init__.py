"""Executes a plan: the sweep, executors, the worker, one file per kind of run; every run becomes a record."""
