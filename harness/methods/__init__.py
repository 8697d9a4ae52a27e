"""Quantization methods: one folder per library that does the work; none imports another.

Planning imports every method, so a module imports its library inside functions.
"""
