"""Checkpoint formats, which methods write and engines read.

The list is open: a plugin may add an engine with its own format and a method that writes it.
"""

from __future__ import annotations

from harness.core.model import ModelRef

Format = str
TRANSFORMERS_FORMAT: Format = "transformers"
"""A folder of safetensors that ``from_pretrained`` reads, quantized or not."""
LOAD_CONFIG_FORMAT: Format = "transformers-config"
"""Not a checkpoint: what ``from_pretrained(quantization_config=…)`` takes for an unquantized one."""
GGUF_FORMAT: Format = "gguf"


def source_format(model: ModelRef) -> Format:
    """The format that a model was published in; random weights are drawn as a transformers checkpoint."""
    return GGUF_FORMAT if model.kind == "gguf" else TRANSFORMERS_FORMAT
