"""GGUF, the file format of llama.cpp: converting a checkpoint to it and reading its files.

The format is defined at github.com/ggml-org/ggml (docs/gguf.md); its ``gguf`` package writes and reads it.
"""
