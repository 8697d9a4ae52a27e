"""How transformers loads a checkpoint, both for the engine and for methods that load their own."""

from __future__ import annotations

from typing import Any

from harness.core.engine import LoadRequest


def load_transformers(request: LoadRequest, **options: Any) -> Any:
    """A causal language model in eval mode. Loads only safetensors weights; raises what transformers raises."""
    from transformers import AutoModelForCausalLM

    if request.attention is not None:
        options["attn_implementation"] = request.attention
    if request.quantization is not None:
        options["quantization_config"] = request.quantization
    return AutoModelForCausalLM.from_pretrained(
        request.path,
        dtype=request.dtype,
        device_map=device_map(request.device),
        trust_remote_code=request.trust_remote_code,
        use_safetensors=True,
        **options,
    ).eval()


def load_tokenizer(request: LoadRequest) -> Any | None:
    """The checkpoint's own tokenizer; None if it has none."""
    from transformers import AutoTokenizer

    if not any(request.path.glob("tokenizer*")):
        return None
    return AutoTokenizer.from_pretrained(request.path, trust_remote_code=request.trust_remote_code)


def device_map(device: str) -> str:
    """Everything on one device; with several GPUs, the first visible one."""
    return "cuda:0" if device == "cuda" else device
