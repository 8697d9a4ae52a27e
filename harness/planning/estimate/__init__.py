"""Estimates the memory a model needs from its header or configuration; loads nothing and imports no backend."""
