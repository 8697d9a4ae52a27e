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


EXPERTS, ACTIVE, WIDTH, INNER, VOCABULARY = 4, 2, 64, 96, 128


def write_mixture(path: Path, architecture: str = "qwen3moe") -> None:
    """A mixture of one layer in Q8_0, but for its router and its embeddings, and without a tokenizer."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_expert_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(ACTIVE)
    writer.add_tensor("token_embd.weight", np.zeros((VOCABULARY, WIDTH), np.float32))
    writer.add_tensor("blk.0.ffn_gate_inp.weight", np.zeros((EXPERTS, WIDTH), np.float32))
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    matrices = {f"attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    matrices |= {"ffn_gate_exps": (EXPERTS, INNER, WIDTH), "ffn_up_exps": (EXPERTS, INNER, WIDTH)}
    for name, shape in {**matrices, "ffn_down_exps": (EXPERTS, WIDTH, INNER)}.items():
        codes = gguf.quants.quantize(np.zeros(shape, np.float32), q8_0)
        writer.add_tensor(f"blk.0.{name}.weight", codes, raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
