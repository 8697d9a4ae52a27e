"""GGUF, the file format of llama.cpp: written from a transformers checkpoint, and its tensors told byte by byte.

The format is defined at github.com/ggml-org/ggml (docs/gguf.md); its ``gguf`` package writes and reads it.
"""
