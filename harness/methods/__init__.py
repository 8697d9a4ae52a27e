"""Quantization methods: one folder per library that does the work; none imports another.

A module imports its library inside functions, for planning imports every method.
"""
