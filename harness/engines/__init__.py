"""Runtimes that load a checkpoint and run it: one folder per engine. No engine imports another."""
