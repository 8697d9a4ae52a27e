"""Drives auto-round: quantizes with prepared token ids, saves the result and loads it.

By default the library takes the name of a data set, drops short rows and detects padding itself. Here it gets rows of
ids with their masks, and ``seqlen`` is their length, so that it uses every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.core.method import QuantizeJob
from harness.models.loading import device_map
from harness.models.scope import reads_other_inputs

if TYPE_CHECKING:
    import torch

PACKAGES = ("auto-round",)
EXTRA = "autoround"
QUANT_METHOD = "auto-round"
ROWS = 8
"""Calibration rows per forward pass and per optimizer step: the library's default."""
WORD = 32
"""The library silently leaves layers unquantized whose width is not a multiple of this."""
UNFUSES_ITSELF = frozenset({"gpt_oss"})
"""The types of mixtures whose blocks the library replaces by its own, with the same names of layers."""
PLAIN: Mapping[str, int | str] = {"bits": 16, "data_type": "float", "act_bits": 16}
"""The library's layer configuration that leaves a layer unquantized."""


def enable() -> None:
    """Imports the checkpoint loader and lets its PyTorch layers run in float32.

    They multiply in their input's dtype, whatever it is; but the library's kernel table omits float32, so it would
    convert the whole model, embeddings included, to float16 after loading.
    """
    from auto_round.inference.backend import BackendInfos

    for name in ("auto_round:torch", "auto_round:torch_zp"):
        dtypes = BackendInfos[name].compute_dtype
        if "float32" not in dtypes:
            dtypes.append("float32")


def prepare(job: QuantizeJob[Any], scheme: str, algorithm: Any, layers: Mapping[str, Mapping[str, Any]]) -> Any:
    """An AutoRound for the job's model and calibration set; ``layers`` maps layer names to their own configurations.

    It works in float32 whatever the job's dtype (``amp=False``): in bfloat16, its default, the model that it leaves in
    memory is rounded once more than the checkpoint.
    """
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    from harness.models.unfuse import unfuse

    calibration = job.calibration_set
    model = job.load()
    if model.config.model_type not in UNFUSES_ITSELF:
        unfuse(model, job.untouched)
    _as_text(model)
    rounding = AutoRound(
        model,
        scheme=scheme,
        alg_configs=algorithm,
        # The library requires a tokenizer for a model in memory, but uses it only to detect padding, by ids alone.
        tokenizer=AutoTokenizer.from_pretrained(job.source, trust_remote_code=job.trust_remote_code),
        dataset=[
            {"input_ids": torch.tensor([row]), "attention_mask": torch.tensor([mask])}
            for row, mask in zip(calibration.tokens, calibration.masks, strict=True)
        ],
        seqlen=calibration.length,
        nsamples=len(calibration.tokens),
        batch_size=min(ROWS, len(calibration.tokens)),
        device_map=device_map(job.device),
        seed=job.seed,
        layer_config={**{name: dict(PLAIN) for name in job.untouched}, **{n: dict(own) for n, own in layers.items()}},
        to_quant_block_names=_text_layers(model),
        low_cpu_mem_usage=False,  # otherwise it would write to its own folder in the current one
        amp=False,
    )
    # Without a tokenizer, only a repeated token at the end of a row counts as padding, whatever its id.
    rounding.model_context.tokenizer = None
    return rounding


def _as_text(model: Any) -> None:
    """Has the library calibrate a multimodal model by token ids: it would ask for a processor of images."""
    from auto_round.utils.model import _is_mllm_model_cache, get_model_name_or_path

    _is_mllm_model_cache[get_model_name_or_path(model)] = False


def _text_layers(model: Any) -> str | None:
    """The name of the text model's list of layers, which alone is quantized; None for a model of text alone."""
    if not any(reads_other_inputs(name) for name, _ in model.named_parameters()):
        return None
    layers = model.get_decoder().layers
    name: str = next(name for name, module in model.named_modules() if module is layers)
    return name


def save(rounding: Any, job: QuantizeJob[Any], stored: str | None = None) -> None:
    """Probes the quantized model, packs it in place and writes it in auto-round's format.

    Weights that are not quantized get the job's dtype. ``stored`` is the dtype that the loaded layers round their
    matrices to, code times scale, before they convert them to the job's dtype.
    """
    import torch

    model, dtype = rounding.model_context.model, getattr(torch, job.dtype)
    for module in model.modules():
        if not hasattr(module, "scale"):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    with _rounded(model, [getattr(torch, stored), dtype] if stored else [dtype]):
        job.probe(model)
    rounding.formats = rounding.compress_context.formats = rounding._resolve_format_string("auto_round")
    for chosen in rounding.formats:
        if type(chosen.backend).__name__ == "AutoAWQFormat":
            # 4 bits with zero points would use AWQ's layout, whose packing fails in 0.15.1 (WQLinear_GEMM takes no
            # weight_dtype); auto-round's own layout, used for other widths with zero points, works too.
            chosen.backend = None
    rounding.save_quantized(str(job.out), inplace=True)


@contextmanager
def _rounded(model: Any, dtypes: list[torch.dtype]) -> Iterator[None]:
    """Within this context, quantized layers compute with matrices that were rounded to each of ``dtypes`` in turn.

    Packing needs the matrices in full precision, so each is rounded only while its layer runs.
    """

    full: dict[torch.nn.Parameter, torch.Tensor] = {}

    def enter(layer: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        for name, parameter in layer.named_parameters():
            full[parameter] = parameter.data
            for dtype in dtypes if name.endswith("weight") else dtypes[-1:]:
                parameter.data = parameter.data.to(dtype)

    def leave(layer: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for parameter in layer.parameters():
            parameter.data = full.pop(parameter)

    wrapped = {module.orig_layer for module in model.modules() if hasattr(module, "orig_layer")}
    layers = [m for m in model.modules() if m not in wrapped and hasattr(getattr(m, "orig_layer", m), "scale")]
    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
