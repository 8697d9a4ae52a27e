"""A checkpoint's architecture without weights, and its tensors: for methods that combine the two themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.engine import LoadRequest
from harness.models.headers import weight_files
from harness.models.loading import auto_class
from harness.models.scope import transformers_name

if TYPE_CHECKING:
    import torch


def skeleton(request: LoadRequest) -> Any:
    """The model of the checkpoint's ``config.json``: parameters on the meta device, buffers as they are computed."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(request.path, trust_remote_code=request.trust_remote_code)
    with init_empty_weights(include_buffers=False):
        return auto_class(type(config)).from_config(
            config,
            dtype=request.dtype,
            attn_implementation=request.attention,
            trust_remote_code=request.trust_remote_code,
        )


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the folder's safetensors files, in main memory, by transformers' name of it.

    Raises SourceError if there are none.
    """
    from safetensors.torch import load_file

    return {
        transformers_name(name): tensor for file in weight_files(folder) for name, tensor in load_file(file).items()
    }
