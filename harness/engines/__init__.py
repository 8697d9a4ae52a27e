"""Runtimes that load a checkpoint and run it: one folder per engine, and no engine imports another."""
