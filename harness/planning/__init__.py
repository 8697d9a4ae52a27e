"""Turns a recipe into the ordered runs of a sweep, without loading a model or writing results."""
