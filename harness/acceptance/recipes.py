"""What the checks measure: recipes, smaller for a processor than for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.acceptance.models import Shape
from harness.recipe.fields import MAX_TOKENS

WHOLE = Shape(vocabulary=128_256)
"""Four layers of Llama 3.1 8B with its vocabulary: 3.8 GB in 16 bits."""
NARROW = Shape(vocabulary=4096)
"""The same layers with a small vocabulary, for a processor: 1.8 GB."""
LIGHT = Shape(vocabulary=4096, hidden=1024, inner=3072, layers=4, heads=16, kv_heads=8, context=4096)
"""0.2 GB in float32: a processor decodes some hundred tokens a second."""
NF4 = "bnb-nf4"
TOO_LONG_TOKENS = 2048


def storage(on_gpu: bool) -> dict[str, Any]:
    """The stored bytes of each method on the 8B shape; on a GPU its speed too."""
    methods = ["none", {NF4: {"double_quant": [False, True]}}, "int8", "fp8"]
    grid = {"batch_sizes": [1], "prompt_tokens": [128], "new_tokens": 32, "iterations": 2}
    return {
        "name": "storage",
        "models": [shape(on_gpu).synthetic("8B shape", "bfloat16")],
        "methods": methods,
        "measure": {"memory": {}} | ({"throughput": grid} if on_gpu else {}),
    }


def shape(on_gpu: bool) -> Shape:
    """The shape whose bytes are counted."""
    return WHOLE if on_gpu else NARROW


def cache(on_gpu: bool) -> dict[str, Any]:
    """The key-value cache of the 8B shape, and with it the machine's own speeds."""
    return {
        "name": "cache",
        "models": [shape(on_gpu).synthetic("8B shape", "bfloat16")],
        "methods": ["none"],
        "measure": {
            "memory": {},
            "throughput": {"batch_sizes": [1], "prompt_tokens": [32], "new_tokens": 4, "iterations": 1},
        },
    }


def decode(on_gpu: bool) -> dict[str, Any]:
    """Decoding at batch 1, with its energy: compiled on a GPU, layer by layer on a processor."""
    grid = {"batch_sizes": [1], "prompt_tokens": [128], "new_tokens": 128, "iterations": 3}
    return {
        "name": "decode",
        "models": [_quick(on_gpu)],
        "methods": ["none"],
        "measure": {"throughput": grid, "energy": {}},
        "decode_mode": "compiled" if on_gpu else "eager",
    }


def quality(folder: Path) -> dict[str, Any]:
    """A small model's divergence from itself, and from what was quantized, saved and read again."""
    return {
        "name": "quality",
        "models": [{"id": str(folder), "label": "small random model", "dtype": "float32"}],
        "methods": ["none", NF4, "rtn"],
        "measure": {"perplexity": {"context": 256, "windows": 4}, "divergence": {}, "memory": {}},
    }


def too_large(on_gpu: bool, memory_bytes: int) -> dict[str, Any]:
    """A batch whose hidden states, as they are or in float32, are larger than the memory (on a CPU: its limit).

    A recipe allows MAX_TOKENS tokens: above 137 GB of memory only the float32 copy that a norm makes is too large.
    """
    width_bytes = WHOLE.hidden * 2 if on_gpu else LIGHT.hidden * 4
    tokens = min(2 * memory_bytes // width_bytes, MAX_TOKENS)
    batch = tokens // (TOO_LONG_TOKENS + 2)
    return {"name": "too-large", **_one(on_gpu, [batch], TOO_LONG_TOKENS, 2), **_limits(on_gpu, memory_bytes)}


def after(on_gpu: bool, memory_bytes: int) -> dict[str, Any]:
    """A batch of one in the same memory."""
    return {"name": "after", **_one(on_gpu, [1], 16, 4), **_limits(on_gpu, memory_bytes)}


def disturbed(on_gpu: bool) -> dict[str, Any]:
    """A run that lasts some seconds, to be disturbed."""
    return {"name": "disturbed", **_one(on_gpu, [1], 64, 64)}


def _one(on_gpu: bool, batch_sizes: list[int], prompt: int, new: int) -> dict[str, Any]:
    grid = {"batch_sizes": batch_sizes, "prompt_tokens": [prompt], "new_tokens": new, "iterations": 2}
    return {"models": [_quick(on_gpu)], "methods": ["none"], "measure": {"throughput": grid}}


def _quick(on_gpu: bool) -> dict[str, Any]:
    return WHOLE.synthetic("8B shape", "bfloat16") if on_gpu else LIGHT.synthetic("light shape", "float32")


def _limits(on_gpu: bool, memory_bytes: int) -> Mapping[str, Any]:
    return {} if on_gpu else {"limits": {"memory": memory_bytes}}
