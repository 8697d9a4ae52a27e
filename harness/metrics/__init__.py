"""Measurements, one file each. None imports another."""
