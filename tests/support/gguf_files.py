"""GGUF files for tests that read headers."""

from __future__ import annotations

from pathlib import Path


def write_q8_0(path: Path) -> None:
    """A file with one matrix in Q8_0 and its embeddings in float32, of a context of 128 tokens."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blk.0.attn_q.weight", gguf.quants.quantize(weight, q8_0), raw_dtype=q8_0)
    writer.add_tensor("token_embd.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
