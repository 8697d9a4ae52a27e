"""Runtimes that load a checkpoint and run it, one folder each. None imports another."""
