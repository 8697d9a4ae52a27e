"""Drives gptqmodel (github.com/ModelCloud/GPTQModel): quantizes, saves, and runs the model that it leaves in memory.

That model cannot run as it is. ``quantize`` packs zero points as the GPTQ v1 format stores them, one too low, into
layers that expect the true values. Observed: a KL of 2, against 0.01 for the same weights reloaded.
``as_loaded`` corrects this with gptqmodel's own converter, from the model in memory, not from the file.

Its loader replaces transformers' classes of some mixtures in the whole process (``defuser.replace_fused_blocks``), so
that a model loaded later would be another one. No run loads one: a worker makes one run, or several of a model that it
keeps (``RunSpec.may_share_process``); a quantize run counts experts' tokens before it quantizes and loads nothing
after; only a baseline is loaded twice (``checks.noise``); and the processes that workers are forked from import the
library but load nothing (``execution.preload``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.engine import LoadRequest
from harness.core.method import Beside, PartsWork, QuantizeJob
from harness.core.owner import temporary_folder
from harness.errors import UnsupportedError
from harness.host.allocator import return_freed_memory
from harness.models.loading import attention_option, device_map, load_transformers

LEAST_ROW = 10
"""gptqmodel drops calibration rows of this many tokens or fewer, whatever ``calibration_data_min_length`` says."""
LIBRARIES_BYTES = 740 * 10**6
"""What a process holds before it has a model: Python, torch, and the library once it has worked."""
COPY_BYTES = 4
"""Of an element while it is worked on, in float32 or int32."""
ENDS = 3.2
"""How often the quantized matrices are in memory at the end: as read from disk, as packed for the kernel, and freed."""
HALF_BYTES = 2
CLIP_ROWS, WIDE_ROWS = 64, 256
"""AWQ's clipping ranges are searched in blocks of so many output rows, the second where it divides all rows. A
remainder is rejected."""
CLIP_TOKENS = 2 * 512 - 1
"""The most tokens whose inputs take part in that: every n-th of all, so that 512 or more are left."""
KERNEL_TOLERANCE = 0.03
"""Largest error of a kernel that rounds to bfloat16, relative to the largest output."""


def enable() -> None:
    """Imports the library. Its thread pool needs two workers and sizes itself by the machine's cores."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    import gptqmodel  # noqa: F401


def beside_gptq(bits: int, shape: tuple[int, int]) -> Beside:
    """The int32 group index of each column, and the int32 shifts that extract codes from their words.

    In 3 bits, 32 codes fill three words, extracted with 3 · 12 shifts. A kernel that repacks the words may keep
    neither.
    """
    indices = 4 * shape[1]
    return Beside(memory=indices + 4 * (36 if bits == 3 else 32 // bits), disk=indices)


def pattern(name: str) -> str:
    """A regular expression that matches exactly one module's name."""
    return "^" + name.replace(".", r"\.") + "$"


def dynamic(job: QuantizeJob[Any], overrides: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """gptqmodel's ``dynamic`` setting: the modules to leave unquantized, and those with settings of their own."""
    skipped: dict[str, Any] = {f"-:{pattern(name)}": {} for name in job.untouched}
    return skipped | {f"+:{pattern(name)}": dict(values) for name, values in (overrides or {}).items()}


def calibration(job: QuantizeJob[Any]) -> list[dict[str, list[int]]]:
    """The rows as gptqmodel takes them. Raises UnsupportedError if it would silently drop or cut them."""
    rows = job.calibration_set
    if rows.length <= LEAST_ROW:
        raise UnsupportedError(f"gptqmodel drops calibration rows of {LEAST_ROW} tokens or fewer; set a longer length")
    config = json.loads((job.source / "config.json").read_text(encoding="utf-8"))
    context = config.get("max_position_embeddings")
    if context is not None and rows.length > context:
        raise UnsupportedError(f"gptqmodel cuts calibration rows at the model's context of {context} tokens")
    return [{"input_ids": list(ids), "attention_mask": mask} for ids, mask in zip(rows.tokens, rows.masks, strict=True)]


@contextmanager
def layers_on_disk(from_disk: bool) -> Iterator[dict[str, Any]]:
    """The arguments of a QuantizeConfig that say where layers are while the model is quantized and loaded again.

    On disk they are in a folder that carries its owner: gptqmodel's own would stay after a process that is killed.
    """
    if not from_disk:
        yield {"offload_to_disk": False}
        return
    with temporary_folder() as folder:
        yield {"offload_to_disk": True, "offload_to_disk_path": str(folder)}


def quantize(job: QuantizeJob[Any], config: Any, dtype: str | None = None, **arguments: Any) -> Any:
    """Quantizes the source with ``config`` and saves it to ``job.out``; returns gptqmodel's model.

    With ``offload_to_disk`` in ``config``, gptqmodel reads a decoder layer from the checkpoint when its turn comes, and
    keeps what it makes of it in a temporary folder (``layers_on_disk``).
    If one of its threads fails, gptqmodel ends the whole process, with the error on stderr.
    Raises SourceError for a checkpoint that lacks a tensor, which gptqmodel would fill with random numbers.
    """
    import torch
    from gptqmodel import GPTQModel

    from harness.models.streaming.parts import refuse_incomplete

    refuse_incomplete(LoadRequest(job.source, job.dtype, "cpu", trust_remote_code=job.trust_remote_code))
    if config.offload_to_disk:
        return_freed_memory()
    with _scratch():
        model = GPTQModel.load(
            str(job.source),
            config,
            device=device_map(job.device),
            dtype=getattr(torch, dtype or job.dtype),
            **attention_option(job.attention),
        )
        model.quantize(calibration_sort=None, batch_size=1, **arguments)
        model.save(str(job.out))
    if config.offload_to_disk:
        _forget_folder(job.out)
    return model


def gptq_peak(params: Any, work: PartsWork) -> float:
    """The most bytes while GPTQ works from disk to disk: a layer, the one before it, which is packed meanwhile, and of
    the matrix at work three Hessians and copies.
    """
    at_work = max(3 * COPY_BYTES * inputs**2 + 3 * COPY_BYTES * outputs * inputs for outputs, inputs in work.layer)
    return _peak(work, at_work)


def awq_peak(params: Any, work: PartsWork) -> float:
    """The same of AWQ in 16 bits, which keeps the inputs of a layer's matrices for all rows.

    Clipping ranges are searched by products of every weight with every input, for a block of rows at a time.
    """
    tokens, half = work.rows * work.length, min(work.plain_bytes, HALF_BYTES)
    kept = half * tokens * sum(inputs for _, inputs in work.layer)
    products = max(
        half * (WIDE_ROWS if outputs % WIDE_ROWS == 0 else CLIP_ROWS) * min(tokens, CLIP_TOKENS) * inputs
        for outputs, inputs in work.layer
    )
    summed = (half + COPY_BYTES) * tokens * max(inputs for _, inputs in work.layer)
    return _peak(replace(work, plain_bytes=half), kept + max(products, summed))


def _peak(work: PartsWork, at_work_bytes: float) -> float:
    widest = max(outputs for outputs, _ in work.layer)
    row = 4 * COPY_BYTES * min(work.rows, 1) * work.length * widest
    states = 2 * work.states_bytes  # before and after the layer
    in_layer = 2 * work.layer_bytes + at_work_bytes + states + row
    embedding = work.plain_bytes * work.hidden * work.vocabulary  # a copy, while it is written to the temporary folder
    codes = max(work.written_bytes - work.others_bytes, 0)
    return LIBRARIES_BYTES + work.others_bytes + max(embedding, in_layer, ENDS * codes)


def _forget_folder(out: Path) -> None:
    """Has a saved checkpoint not name the temporary folder: it is that of a model that was in memory."""
    for name in ("config.json", "quantize_config.json"):
        path = out / name
        content = json.loads(path.read_text(encoding="utf-8"))
        content.get("quantization_config", content)["meta"] |= {"offload_to_disk": False, "offload_to_disk_path": None}
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def as_loaded(model: Any, device: str, dtype: str) -> Any:
    """The transformers model inside ``model``, every layer on the kernel that a reload picks for its settings.

    Its plain weights have ``dtype``, as after a reload.
    The CPU kernels round activations to bfloat16, which alone exceeds the reload tolerance. A kernel that does not
    compute what the codes mean (see ``_agrees``) is not used here, so that the reload check finds the fault.
    """
    import torch
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear
    from gptqmodel.utils.offload import undo_offload_to_disk

    inner = model.model
    if model.quantize_config.offload_to_disk:
        undo_offload_to_disk(inner)
    inner = inner.to(device_map(device))
    for name, module in list(inner.named_modules()):
        if isinstance(module, BaseQuantLinear):
            inner.set_submodule(name, _runnable(module, inner.device))
    for module in inner.modules():
        for name, held in module.named_parameters(recurse=False):
            # a new one: what came back from disk is an inference tensor, whose data cannot be replaced
            setattr(module, name, torch.nn.Parameter(held.detach().to(getattr(torch, dtype)), requires_grad=False))
    return inner.eval()


def _runnable(module: Any, device: Any) -> Any:
    from gptqmodel.quantization import METHOD
    from gptqmodel.utils.exllamav2 import ScratchSpace
    from gptqmodel.utils.importer import hf_select_quant_linear_v2
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
    from gptqmodel.utils.packing import hf_repack_layer

    method = METHOD.AWQ if METHOD.AWQ in type(module).SUPPORTS_METHODS else METHOD.GPTQ
    kernel = hf_select_quant_linear_v2(
        bits=module.bits,
        group_size=module.requested_group_size,
        desc_act=module.desc_act,
        sym=module.sym,
        format="gemm" if method == METHOD.AWQ else "gptq",
        quant_method=method,
        device_map=str(device),
        backend=_backend(method.value, module.bits, module.requested_group_size, device.type),
        pack=False,
    )
    repacked = None
    if kernel is not type(module):
        repacked = hf_repack_layer(module, kernel.SUPPORTS_BACKENDS[0], device=device, post_init=False).eval()
        if hasattr(repacked, "scratch_space_fixed"):  # ExLlama
            repacked.post_init(scratch_space=ScratchSpace(repacked.scratch_space_fixed(), device))
        else:
            repacked.post_init()
    if method == METHOD.GPTQ and module.qzero_format() == 1:
        convert_gptq_v1_to_v2_format_module(module, module.bits, module.pack_dtype)
    module.eval()
    return repacked if repacked is not None and _agrees(repacked, module, device) else module


def _backend(method: str, bits: int, group_size: int, device: str) -> str:
    """gptqmodel's own choice of kernel, except where that is known to fail.

    For 4 bits and one scale per channel on a CPU it chooses ``TorchFusedLinear``, which torch rejects ("expect
    qGroupSize to be 32, 64, 128 or 256") or which, at such a width, treats every zero point as the middle one.
    """
    return "gptq_torch" if (method, bits, group_size, device) == ("gptq", 4, -1, "cpu") else "auto"


def _agrees(kernel: Any, reference: Any, device: Any) -> bool:
    """Whether a layer's outputs on noise match those of its dequantized codes, up to rounding."""
    import torch

    # a separate generator: the harness's seed must not depend on which kernels a machine has
    noise = torch.randn(4, reference.in_features, generator=torch.Generator().manual_seed(0)).to(device)
    noise = noise.to(torch.float16) if noise.device.type == "cuda" else noise
    with torch.inference_mode():
        expected, given = reference(noise).float(), kernel(noise).float()
    return bool((expected - given).abs().max() <= KERNEL_TOLERANCE * expected.abs().max())


def amend_config(folder: Path, **entries: Any) -> None:
    """Adds entries to the ``quantization_config`` of a saved checkpoint."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] |= entries
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def quantization_config(folder: Path) -> dict[str, Any]:
    """The ``quantization_config`` of a saved checkpoint."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    return config


def read_own(request: LoadRequest) -> Any:
    """Loads with gptqmodel's own loader."""
    import torch
    from gptqmodel import GPTQModel

    dtype = getattr(torch, request.dtype)
    with _scratch():
        return GPTQModel.load(
            str(request.path),
            device=device_map(request.device),
            dtype=dtype,
            trust_remote_code=request.trust_remote_code,
            **attention_option(request.attention),
        ).model.eval()


def read_gptq(request: LoadRequest) -> Any:
    """Loads with transformers, which passes GPTQ checkpoints to optimum, which uses gptqmodel's layers."""
    from transformers import GPTQConfig

    saved = quantization_config(request.path)
    backend = _backend("gptq", saved["bits"], saved["group_size"], request.device)
    options = {} if backend == "auto" else {"quantization_config": GPTQConfig(bits=saved["bits"], backend=backend)}
    return load_transformers(request, **options)


@contextmanager
def mixed_layers(overrides: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[None]:
    """Makes optimum give the named modules layers with their own settings within this context.

    optimum ignores gptqmodel's ``dynamic`` and builds every layer with the same bits, which then do not match the file.
    """
    from optimum.gptq import GPTQQuantizer

    plain = GPTQQuantizer.convert_model

    def convert(self: Any, model: Any, **arguments: Any) -> Any:
        model = plain(self, model, **arguments)
        for name, values in overrides:
            settings = {**self.to_dict(), **values}
            device = str(arguments.get("device_map") or "cpu")
            own = GPTQQuantizer(
                **settings,
                backend=_backend("gptq", settings["bits"], settings["group_size"], device),
            )
            own.select_quant_linear(device_map=arguments.get("device_map"), pack=False)
            old = model.get_submodule(name)
            layer = own.quant_linear(
                own.bits,
                own.group_size,
                own.desc_act,
                own.sym,
                old.in_features,
                old.out_features,
                old.bias is not None,
            )
            model.set_submodule(name, layer.to(old.qweight.device))
        return model

    GPTQQuantizer.convert_model = convert
    try:
        yield
    finally:
        GPTQQuantizer.convert_model = plain


@contextmanager
def _scratch() -> Iterator[None]:
    """Redirects gptqmodel's logs from ``./logs`` to a temporary folder within this context."""
    from gptqmodel.looper import loop_processor

    usual = loop_processor._PROJECT_LOG_DIR
    with temporary_folder() as folder:
        loop_processor._PROJECT_LOG_DIR = folder
        try:
            yield
        finally:
            loop_processor._PROJECT_LOG_DIR = usual
