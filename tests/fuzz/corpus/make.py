"""Writes the valid inputs that the fuzzers of headers and records start from. Run it where such an input changes."""

from __future__ import annotations

import json
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from harness.api.pack import pack
from harness.storage.pack import PACK
from harness.storage.reading import read_results
from harness.storage.store import Store

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "data"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 8}


def main() -> None:
    for name in ("safetensors", "gguf", "config", "record", "pack", "index"):
        (HERE / name).mkdir(exist_ok=True)
    (HERE / "safetensors" / "layer").write_bytes(_safetensors())
    for kind in ("llama", "gpt2"):
        _write_gguf(HERE / "gguf" / kind, kind)
    for name in ("qwen3-30b-a3b", "gemma-3-270m"):
        config = json.loads((DATA / "configs" / f"{name}.json").read_text())
        (HERE / "config" / name).write_bytes(json.dumps(config).encode())
    layout = {"model_type": "llama", "tie_word_embeddings": True, "torch_dtype": "bfloat16", **SIZES}
    index = {"weight_map": {"model.layers.0.mlp.up_proj.weight": "model-1.safetensors"}}
    (HERE / "config" / "llama").write_bytes(json.dumps(layout).encode() + b"\0" + json.dumps(index).encode())
    quantized = layout | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    (HERE / "config" / "gptq").write_bytes(json.dumps(quantized).encode())
    for version in ("version-1", "version-2", "version-3"):
        (record,) = (DATA / "records" / version).rglob("record.json")
        held = record.with_name("evidence.parquet").read_bytes()
        (HERE / "record" / version).write_bytes(json.dumps(json.loads(record.read_text())).encode() + b"\0" + held)
    _write_pack(HERE / "pack" / "attempts", DATA / "records" / "version-3")
    (HERE / "index" / "unchanged").write_bytes(b"")


def _write_pack(path: Path, results: Path) -> None:
    """Three attempts of one run, one of them without its log."""
    (record,) = read_results(results).records
    with tempfile.TemporaryDirectory() as folder:
        for attempt in (1, 2, 3):
            Store(Path(folder)).save(replace(record, attempt=attempt), b"a log\n" if attempt > 1 else None)
        list(pack(folder))
        (packed,) = Path(folder).rglob(PACK)
        path.write_bytes(packed.read_bytes())


def _safetensors() -> bytes:
    shapes = {
        "model.embed_tokens.weight": (8, 4),
        "model.layers.0.mlp.up_proj.weight": (6, 4),
        "model.layers.0.mlp.up_proj.bias": (6,),
        "model.layers.0.self_attn.q_proj.qweight": (4, 4),
        "model.layers.0.self_attn.q_proj.scales": (1, 4),
    }
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        dtype = {"qweight": "I32", "scales": "F16"}.get(name.rpartition(".")[2], "F32")
        end = begin + int(np.prod(shape)) * (2 if dtype == "F16" else 4)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(begin)


def _write_gguf(path: Path, kind: str) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tokenizer_model(kind)
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "<|im_end|>"]
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 3])
    if kind == "llama":
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
    else:
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
