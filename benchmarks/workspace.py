"""The estimated workspace of a prefill compared with the resident memory it takes: ``python benchmarks/workspace.py``.

Random weights in four shapes, on a CPU. Set MALLOC_MMAP_THRESHOLD_=65536, or glibc keeps freed blocks resident.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.models import memory, shapes

SHAPES = [
    (1024, 3072, 16, 8, 4096, 1),
    (1024, 3072, 16, 8, 1024, 4),
    (512, 512, 16, 16, 8192, 1),
    (512, 4096, 8, 2, 2048, 2),
]
"""Hidden size, inner size, heads, key-value heads, context, batch."""
VOCABULARY = 4096
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Writing this to clear_refs resets VmHWM to the current resident set (proc(5))."""


def main() -> None:
    print("| hidden | inner | heads | key-value heads | context | batch | estimated (MB) | resident (MB) | ratio |")
    print(f"|{' ---: |' * 9}")
    for shape in SHAPES:
        estimated, taken = _compare(*shape)
        cells = [*map(str, shape), f"{estimated / 1e6:.1f}", f"{taken / 1e6:.1f}", f"{estimated / taken:.2f}"]
        print(f"| {' | '.join(cells)} |")


def _compare(hidden: int, inner: int, heads: int, kv_heads: int, context: int, batch: int) -> tuple[int, int]:
    """The estimated workspace in bytes, and the resident set's peak above its start, minus the cache."""
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 16384,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        known = shapes.read(str(file))
    with torch.inference_mode():
        _prefill(model, torch.zeros(1, 8, dtype=torch.int64))
        tokens = torch.randint(0, VOCABULARY, (batch, context))
        CLEAR_REFS.write_text(RESET_PEAK)
        before = _resident("VmRSS")
        kept = _prefill(model, tokens)
        taken = _resident("VmHWM") - before - memory.kv_cache_bytes(known, context, batch, 32)
        del kept
    return memory.workspace_bytes(known, context, batch, 32), taken


def _prefill(model: torch.nn.Module, tokens: torch.Tensor) -> object:
    return model(input_ids=tokens, use_cache=True, logits_to_keep=1)


def _resident(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
