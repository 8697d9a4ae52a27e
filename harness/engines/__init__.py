"""Runtimes that turn a checkpoint into a LoadedModel, one file each. None imports another."""
