"""Quantization methods, one file a library's family. None imports another; all import lazily."""
