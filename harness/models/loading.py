"""How transformers loads a checkpoint, both for the engine and for methods that load their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.core.engine import LoadRequest
from harness.errors import UnsupportedError
from harness.models import auto_round, bitsandbytes, compressed, headers, native
from harness.models.completeness import names_checked, refuse_unlike
from harness.models.scope import module_name

_CODES_OF_AN_EXPERT = re.compile(r"\.experts\.\d+\.(?!\w+\.(weight|bias)$)")
GPTQ_MODULES = "modules_in_block_to_quantize"
OFFLOADED = ("dispatched on the CPU or the disk", "device_map that contains a", "to perform disk offload")
"""How transformers' quantizers say that a spread model does not fit its GPUs, in a ValueError."""


def auto_class(kind: type) -> Any:
    """The auto class of the language model to load for a class of transformers' configurations.

    A multimodal checkpoint whose type has no class for text alone is loaded whole, and only its text model runs.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    of_text, of_images = AutoModelForCausalLM._model_mapping, AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if kind not in of_text and kind in of_images else AutoModelForCausalLM


def checkpoint_class(folder: Path, trust_remote_code: bool = False) -> Any:
    """The auto class of the language model to load from a checkpoint. Raises what transformers raises."""
    return auto_class(type(_config(folder, trust_remote_code)))


def _config(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)


def load_transformers(request: LoadRequest, **options: Any) -> Any:
    """A language model in eval mode. Loads only safetensors weights; raises what transformers raises.

    Raises MemoryError if transformers left a part of it to the host, or a quantizer refused to; SourceError for an
    unquantized checkpoint that is unlike its config.json, and UnsupportedError if transformers does not know the names
    of experts in a quantized one.
    """
    stored = headers.read_config(request.path).get("quantization_config") or {}
    options |= attention_option(request.attention)
    if request.quantization is not None:
        options["quantization_config"] = request.quantization
    if (listed := _gptq_modules(stored)) is not None:
        options["config"] = _config(request.path, request.trust_remote_code)
        options["config"].quantization_config = stored | {GPTQ_MODULES: listed}
    if stored.get("quant_method") == auto_round.QUANT_METHOD:
        auto_round.keep_dtype()
    if stored.get("quant_method") == bitsandbytes.QUANT_METHOD:
        bitsandbytes.take_all_shapes()
    single = ("quantization_config" in options or bool(stored)) and _quantizes_single_experts(request.path, stored)
    try:
        with ExitStack() as reading:
            reading.enter_context(names_checked(request.path, _check_experts if stored else refuse_unlike))
            reading.enter_context(native.whole_blocks(stored))
            reading.enter_context(compressed.made_dense(stored, request.dtype))
            if request.quantization is not None or single:
                from harness.models.unfuse import unfused

                reading.enter_context(unfused(request.untouched))
            model = checkpoint_class(request.path, request.trust_remote_code).from_pretrained(
                request.path,
                dtype=request.dtype,
                device_map=device_map(request.device, request.gpus),
                trust_remote_code=request.trust_remote_code,
                use_safetensors=True,
                **options,
            )
    except ValueError as error:
        if request.gpus > 1 and any(words in str(error) for words in OFFLOADED):
            raise MemoryError(f"the model does not fit {request.gpus} GPUs; use more devices or fewer bits") from error
        raise
    refuse_offloaded(model, request.gpus)
    if single and _by_gptqmodel(stored):
        _join_halves(model)
    return model.eval()


def _gptq_modules(stored: Mapping[str, Any]) -> list[list[str]] | None:
    """The modules that a GPTQ checkpoint lists as quantized, if it names some of them otherwise than transformers.

    AutoGPTQ writes their names below a layer, such as ``block_sparse_moe.experts.0.w1``. optimum would leave those as
    they are, and read their codes into nothing.
    """
    listed: list[list[str]] = stored.get(GPTQ_MODULES) or []
    named = [[module_name(f".{name}")[1:] for name in names] for names in listed]
    return named if named != listed else None


def _by_gptqmodel(stored: Mapping[str, Any]) -> bool:
    return "gptqmodel" in str((stored.get("meta") or {}).get("quantizer"))


def _join_halves(model: Any) -> None:
    """Joins the products of gate and up as halves of an expert's row, even if they alternate there, as in gpt-oss.

    gptqmodel calls the halves of an expert's rows gate and up, whatever they are.
    """
    from harness.models.unfuse import UnfusedExperts

    for module in model.modules():
        if isinstance(module, UnfusedExperts):
            module.is_concatenated = True


def _check_experts(missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Tensors may be absent, or superfluous: only both at once show that names are others."""
    lacking, left = (sorted(key for key in keys if ".experts." in key) for keys in (missing, unexpected))
    if lacking and left:
        raise UnsupportedError(
            f"the checkpoint's names of its experts are not known: {left[0]} is read into no layer, and nothing into "
            f"{lacking[0]}"
        )


def _quantizes_single_experts(checkpoint: Path, stored: Mapping[str, Any]) -> bool:
    """Whether a checkpoint stores codes expert by expert, which transformers reads into layers, not into fused experts.

    Not of FP8, which transformers fuses with its scales.
    """
    if stored.get("quant_method") in native.FORMATS:
        return False
    return any(_CODES_OF_AN_EXPERT.search(tensor.name) for tensor in headers.tensors(checkpoint))


def load_tokenizer(request: LoadRequest) -> Any | None:
    """The checkpoint's own tokenizer; None if it has none."""
    from transformers import AutoTokenizer

    if not headers.has_tokenizer(request.path):
        return None
    return AutoTokenizer.from_pretrained(request.path, trust_remote_code=request.trust_remote_code)


def attention_option(name: str | None) -> dict[str, str]:
    """transformers' keyword argument for the attention that a recipe names; none where it leaves it to transformers."""
    return {} if name is None else {"attn_implementation": name}


def device_map(device: str, gpus: int = 1) -> str:
    """Everything on one device, the first visible GPU; or over all of several, in equal parts of whole layers."""
    if device == "cuda":
        return "cuda:0" if gpus == 1 else "balanced"
    return device


def refuse_offloaded(model: Any, gpus: int) -> None:
    """Raises MemoryError for a spread model that does not fit its GPUs: the rest would be computed from host memory.

    Of what accelerate moves there, or to a disk, a model holds parameters without numbers (``meta``).
    """
    parameters = dict(model.named_parameters()) if gpus > 1 else {}
    left = [name for name, parameter in parameters.items() if parameter.device.type in ("cpu", "meta")]
    if left:
        raise MemoryError(
            f"the model does not fit {gpus} GPUs: {len(left)} of its {len(parameters)} parameters, such as {left[0]}, "
            "would be computed from host memory; use more devices or fewer bits"
        )
