"""Drives auto-round: quantizes with prepared token ids, saves the result and loads it.

By default the library takes the name of a data set, drops short rows and detects padding itself. Here it gets rows of
ids with their masks, and ``seqlen`` is their length, so that it uses every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.core.engine import RESIDENT
from harness.core.method import PartsWork, QuantizeJob
from harness.core.owner import temporary_folder
from harness.models.auto_round import keep_dtype
from harness.models.loading import device_map
from harness.models.scope import reads_other_inputs

if TYPE_CHECKING:
    import torch

PACKAGES = ("auto-round",)
EXTRA = "autoround"
LIBRARIES_BYTES = 700 * 10**6
"""What Python, torch, transformers and auto-round take before there is a model."""
TUNED_COPIES = 8
"""Numbers for each weight of the layer at work: the weight, its rounding with its gradient, the best rounding so far,
and what the backward pass keeps. Measured: 7.6."""
STATES = 4
"""A layer's inputs and outputs for all rows, by unquantized and by quantized layers."""
WIDE_BYTES = 4
"""The library works in float32, whatever the recipe's dtype."""
ROWS = 8
"""Calibration rows per forward pass and per optimizer step: the library's default."""
WORD = 32
"""The library silently leaves layers unquantized whose width is not a multiple of this."""
UNFUSES_ITSELF = frozenset({"gpt_oss"})
"""The types of mixtures whose blocks the library replaces by its own, with the same names of layers."""
WHOLE = f"only when it is in memory as a whole; {RESIDENT}"
STARTS: Mapping[str, float] = {"value": 0.0, "min_scale": 1.0, "max_scale": 1.0}
"""What the library learns of a layer, with what each number is at first: added before rounding, and times the range."""
PLAIN: Mapping[str, int | str] = {"bits": 16, "data_type": "float", "act_bits": 16}
"""The library's layer configuration that leaves a layer unquantized."""


def enable() -> None:
    """Imports the library, which leaves a checkpoint's model in its dtype from now on."""
    keep_dtype()


@dataclass(frozen=True)
class Rounding:
    """What the library is to do: its scheme's name, its algorithm, and configurations of single ``layers`` by name.

    ``stored`` is the dtype that the loaded layers round their matrices to, code times scale, before they convert them
    to the job's dtype.
    """

    scheme: str
    algorithm: Any
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stored: str | None = None


def quantize(job: QuantizeJob[Any], how: Rounding) -> None:
    """Quantizes the model in memory, probes it, packs it in place and writes it in auto-round's format.

    Weights that are not quantized get the job's dtype.
    """
    from harness.models.unfuse import unfuse

    model = job.load()
    if model.config.model_type not in UNFUSES_ITSELF:
        unfuse(model, job.untouched)
    rounding = _prepare(job, how, model)
    with _unlearnt() as unlearnt:
        rounding.quantize()
    job.rounded(unlearnt)
    _cast_plain(model, job.dtype)
    _probe(job, how, model)
    _choose_format(rounding)
    rounding.save_quantized(str(job.out), inplace=True)


def refuses_parts(params: Any, model_type: str | None, multimodal: bool) -> str | None:
    """Why a model cannot be quantized from disk to disk; None if it can."""
    if multimodal:
        return f"auto-round quantizes a model with parts for images or sound {WHOLE}"
    if model_type in UNFUSES_ITSELF:
        return f"auto-round quantizes {model_type}, whose blocks it replaces, {WHOLE}"
    return None


def quantize_parts(job: QuantizeJob[Any], how: Rounding) -> None:
    """The same, byte by byte, of a model whose decoder layers are on disk but for the one that is worked on.

    Raises UnsupportedError for a model that can only be quantized whole.
    """
    from harness.methods.autoround.layers import LayersOnDisk

    with (
        temporary_folder() as folder,
        closing(LayersOnDisk(job, folder, lambda layer: _cast_plain(layer, job.dtype))) as layers,
    ):
        with layers.looks_whole():
            rounding = _prepare(job, how, layers.model, from_disk=True)
        layers.enter(rounding)
        with _unlearnt() as unlearnt:
            rounding.quantize()
        job.rounded(unlearnt)
        _cast_plain(layers.model, job.dtype)
        layers.load_when_called()
        _probe(job, how, layers.model)
        _choose_format(rounding)
        layers.save(rounding, job.out)


def tuning_peak(params: Any, work: PartsWork) -> float:
    """The most bytes while roundings are learnt from disk to disk, one layer at a time."""
    numbers = work.others_bytes + TUNED_COPIES * work.layer_bytes + STATES * work.states_bytes
    return LIBRARIES_BYTES + numbers * WIDE_BYTES / work.plain_bytes


def _prepare(job: QuantizeJob[Any], how: Rounding, model: Any, from_disk: bool = False) -> Any:
    """An AutoRound for a model and the job's calibration set.

    It works in float32 whatever the job's dtype (``amp=False``): in bfloat16, its default, the model that it leaves in
    memory is rounded once more than the checkpoint.
    """
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    calibration = job.calibration_set
    _as_text(model)
    rounding = AutoRound(
        model,
        scheme=how.scheme,
        alg_configs=how.algorithm,
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
        layer_config={
            **{name: dict(PLAIN) for name in job.untouched},
            **{name: dict(own) for name, own in how.layers.items()},
        },
        to_quant_block_names=_text_layers(model),
        low_cpu_mem_usage=from_disk,  # of a model in memory it would write to its own folder in the current one
        amp=False,
    )
    # Without a tokenizer, only a repeated token at the end of a row counts as padding, whatever its id.
    rounding.model_context.tokenizer = None
    return rounding


@contextmanager
def _unlearnt() -> Iterator[list[str]]:
    """Collects the layers that SignRound leaves as rounding to nearest gives them, within this context.

    What it learns of a layer begins there. It stays there if no calibration token reaches the layer, which then has no
    gradient, and in all layers of a block if no step makes the block's error smaller.
    """
    from auto_round.algorithms.quantization.sign_round.quantizer import SignRoundQuantizer

    names: list[str] = []
    learn = SignRoundQuantizer.quantize_block

    def learnt(self: Any, block: Any, *given: Any, **options: Any) -> Any:
        best = learn(self, block, *given, **options)
        for path, layer in block.named_modules():
            if hasattr(layer, "scale") and _is_unlearnt(best.get(path, {})):
                names.append(layer.global_name)
        return best

    SignRoundQuantizer.quantize_block = learnt
    try:
        yield names
    finally:
        SignRoundQuantizer.quantize_block = learn


def _is_unlearnt(best: Mapping[str, torch.Tensor]) -> bool:
    """Whether what was learnt of a layer adds nothing to its weights and leaves their range as it is."""
    return all(bool((best[name] == start).all()) for name, start in STARTS.items() if name in best)


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


def _cast_plain(root: torch.nn.Module, dtype: str) -> None:
    """Gives the weights that are not quantized, below a model or a layer, the job's dtype."""
    import torch

    for module in root.modules():
        if not hasattr(module, "scale"):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(getattr(torch, dtype))


def _probe(job: QuantizeJob[Any], how: Rounding, model: Any) -> None:
    import torch

    with _rounded(model, [getattr(torch, dtype) for dtype in (how.stored, job.dtype) if dtype]):
        job.probe(model)


def _choose_format(rounding: Any) -> None:
    rounding.formats = rounding.compress_context.formats = rounding._resolve_format_string("auto_round")
    for chosen in rounding.formats:
        if type(chosen.backend).__name__ == "AutoAWQFormat":
            # 4 bits with zero points would use AWQ's layout, whose packing fails in 0.15.1 (WQLinear_GEMM takes no
            # weight_dtype); auto-round's own layout, used for other widths with zero points, works too.
            chosen.backend = None


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
