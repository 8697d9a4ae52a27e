"""Drives llm-compressor: runs ``oneshot`` and saves the result.

A compressed-tensors checkpoint holds packed codes. They are unpacked into dense matrices when they are loaded, and, if
the scheme quantizes activations, each layer's inputs are quantized and dequantized in every forward pass. The running
model has the format's errors, but neither its size nor its speed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.core.engine import LoadRequest
from harness.core.format import Codes
from harness.core.layers import is_layer
from harness.core.method import Beside, CalibrationSet, PartsWork, QuantizeJob
from harness.core.owner import temporary_folder
from harness.host.allocator import return_freed_memory
from harness.models.compressed import QUANT_METHOD
from harness.models.skeleton import skeleton
from harness.models.streaming.parts import part_name

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

PACKAGES = ("llmcompressor", "compressed-tensors")
EXTRA = "llmcompressor"
ROWS = 8
"""Calibration rows per forward pass."""
TARGET = "Linear"
WORD = 32
"""Bits of the words that integer codes are packed into."""
LIBRARIES_BYTES = 700 * 10**6
"""What a process holds before it has a model: Python, torch, and the library once it has worked."""
COPY_BYTES = 4
"""Of an element while it is worked on, in float32 or int32."""
SHARD_BYTES = 20 * 10**9
"""A file of a checkpoint: layers on disk are gathered until a file of this size is full."""


def enable() -> None:
    """Imports what loads the checkpoints, so that no timed phase includes the import."""
    import compressed_tensors  # noqa: F401


def quantize(job: QuantizeJob[Any], modifiers: Sequence[Any], calibrated: bool) -> None:
    """Runs the modifiers in order, probes the model and saves it packed.

    Before packing, which is done in place, the model fake-quantizes its matrices in each forward pass: so the reload
    check compares packing and unpacking with a model that has been through neither.
    Layers that GPTQ gave up on and rounded to nearest are recorded.
    """
    from llmcompressor import oneshot
    from llmcompressor.core import reset_session

    _unpin()
    model = job.load()
    with _given_up() as rounded:
        oneshot(
            model=model,
            recipe=list(modifiers),
            dataset=batches(job.calibration_set, job.device) if calibrated else None,
            processor=object(),  # ids need no tokenizer; without any object here the library looks for one
            pipeline="independent",
        )
    job.rounded(rounded)
    job.probe(model)
    model.save_pretrained(job.out, save_compressed=True)
    _ignore_by_module(job)
    reset_session()  # it would keep the model alive


def from_disk(quantize: Callable[[QuantizeJob[Any]], None]) -> Callable[[QuantizeJob[Any]], None]:
    """The same quantization of a model whose decoder layers stay on disk.

    compressed-tensors reads a layer's tensors when they are used, and keeps them while the sequential pipeline works on
    that layer; those that it changes are written to a temporary folder.
    """

    def quantize_parts(job: QuantizeJob[Any]) -> None:
        return_freed_memory()
        with temporary_folder() as folder:
            quantize(replace(job, load=partial(_load_on_disk, job, folder), probe=partial(_probe_by_layer, job)))

    return quantize_parts


def rounding_peak(params: Any, work: PartsWork) -> float:
    """The most bytes while weights are rounded from disk to disk, alone or with ranges of activations.

    A layer is in memory, with copies of the matrix at work: rounded, in codes, and packed. At the end it is a file's
    worth of the checkpoint.
    """
    return _peak(work, work.layer_bytes + 4 * _largest(work) + _activations(work))


def gptq_peak(params: Any, work: PartsWork) -> float:
    """As ``rounding_peak``, with the Hessian of each matrix until its turn: then there are three of it."""
    squares = [COPY_BYTES * inputs**2 for _, inputs in work.layer]
    hessians = max(
        sum(squares[number:]) + 2 * squares[number] + 2 * COPY_BYTES * outputs * inputs
        for number, (outputs, inputs) in enumerate(work.layer)
    )
    return max(rounding_peak(params, work), _peak(work, work.layer_bytes + hessians + _activations(work)))


def awq_peak(params: Any, work: PartsWork) -> float:
    """As ``rounding_peak``, with the layer's original weights, and the inputs of all its blocks for all rows."""
    inputs = work.states_bytes / max(work.hidden, 1) * (max(each for _, each in work.layer) + 6 * work.hidden)
    return _peak(work, 2 * work.layer_bytes + 6 * _largest(work) + inputs + _activations(work))


def _peak(work: PartsWork, bytes_at_once: float) -> float:
    gathered = min(max(work.written_bytes - work.others_bytes, 0), SHARD_BYTES)
    return LIBRARIES_BYTES + work.others_bytes + max(bytes_at_once, gathered)


def _largest(work: PartsWork) -> float:
    return COPY_BYTES * max(outputs * inputs for outputs, inputs in work.layer)


def _activations(work: PartsWork) -> float:
    """Of all rows the states between two layers and the masks, and what a batch in a layer takes.

    The library computes attention with a matrix of tokens × tokens for each head.
    """
    rows = min(work.rows, ROWS)
    masks = work.plain_bytes * work.rows * work.length**2
    scores = 2 * COPY_BYTES * rows * work.heads * work.length**2
    widest = max(outputs for outputs, _ in work.layer)
    return work.states_bytes + masks + scores + 4 * COPY_BYTES * rows * work.length * widest


def _probe_by_layer(job: QuantizeJob[Any], model: Any) -> None:
    """Probes a model whose layers are on disk, with the tensors of each in memory while it computes.

    compressed-tensors rounds a weight in place for its product. Read again from disk, it would not be rounded.
    """
    from compressed_tensors.offload import disable_offloading

    with ExitStack() as kept:
        for name, module in model.named_modules():
            if is_layer(name):
                module.register_forward_pre_hook(lambda *_: kept.enter_context(disable_offloading()))
                module.register_forward_hook(lambda *_: kept.pop_all().close())
        job.probe(model)


def _load_on_disk(job: QuantizeJob[Any], folder: Path) -> Any:
    """The source with its decoder layers on disk, in ``folder`` once they change, and all else in main memory."""
    from compressed_tensors.offload import from_accelerate

    names = skeleton(LoadRequest(job.source, "float32", "cpu", trust_remote_code=job.trust_remote_code)).state_dict()
    model = job.load(
        device_map={owner: "disk" if is_layer(owner) else "cpu" for owner in map(part_name, names)},
        offload_folder=str(folder),
        offload_buffers=True,
    )
    from_accelerate(model)
    return model


def _ignore_by_module(job: QuantizeJob[Any]) -> None:
    """Names what is left alone by modules too: the library writes the names of a checkpoint's tensors alone.

    transformers looks for modules, which multimodal models call otherwise, and would take their vision parts for
    quantized.
    """
    path = job.out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    ignored = config["quantization_config"]["ignore"]
    config["quantization_config"]["ignore"] = list(dict.fromkeys([*ignored, *job.untouched]))
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def batches(calibration: CalibrationSet, device: str) -> DataLoader[Any]:
    """Every row, in order and without its padding: GPTQ, AWQ and activation ranges ignore the mask.

    Up to eight adjacent rows of equal length form a batch of ``input_ids`` and ``attention_mask`` (rows, length).
    """
    import torch
    from torch.utils.data import DataLoader

    made: list[dict[str, torch.Tensor]] = []
    for _, alike in itertools.groupby(calibration.texts, key=len):
        ids = torch.tensor(list(alike), device=device)
        parts = [ids[start : start + ROWS] for start in range(0, len(ids), ROWS)]
        made += [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]
    return DataLoader(made, batch_size=None, shuffle=False)  # type: ignore[arg-type]


def integers(bits: int, group_size: int | Literal["channel"], symmetric: bool) -> Any:
    """The integer quantization of weights, with one scale per group of input columns or per output channel."""
    from compressed_tensors.quantization import QuantizationArgs

    if group_size == "channel":
        return QuantizationArgs(num_bits=bits, strategy="channel", symmetric=symmetric)
    return QuantizationArgs(num_bits=bits, strategy="group", group_size=group_size, symmetric=symmetric)


def integer_codes(params: Any) -> Codes:
    """What weight-only parameters store."""
    return Codes.grouped(QUANT_METHOD, params.bits, params.group_size, asymmetric=not params.symmetric)


def integer_bits(
    bits: int, group_size: int | Literal["channel"], symmetric: bool, plain_bits: float, width: int
) -> float:
    """Stored bits of a weight: its code in whole words of a row, a scale in the model's dtype, a packed zero point."""
    codes = math.ceil(width * bits / WORD) * WORD / width
    return codes + (plain_bits + (0 if symmetric else bits)) / (width if group_size == "channel" else group_size)


def beside_integers(params: Any, plain_bits: float, shape: tuple[int, int]) -> Beside:
    """The matrix's shape as two int64, which cannot be derived from packed codes."""
    return Beside(disk=16.0)


def groups(weights: Any, inputs: Any = None, single: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The groups of a modifier's configuration: all linear layers, and ``single`` layers with their own quantization.

    An exact name takes precedence over a class: the layers in ``single`` are removed from the first group.
    """
    from compressed_tensors.quantization import QuantizationScheme

    made = [QuantizationScheme(targets=[TARGET], weights=weights, input_activations=inputs)]
    for name, own in (single or {}).items():
        made.append(QuantizationScheme(targets=[name], weights=own, input_activations=inputs))
    return {f"group_{index}": scheme for index, scheme in enumerate(made)}


def preset(name: str) -> dict[str, Any]:
    """The group of a scheme that the library defines by name, for all linear layers."""
    from compressed_tensors.quantization import preset_name_to_scheme

    return {"group_0": preset_name_to_scheme(name, [TARGET])}


def _unpin() -> None:
    """Keeps AWQ from pinning memory, which fails without an accelerator."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache._pin_intermediate = classmethod(lambda cls, value: None)


@contextmanager
def _given_up() -> Iterator[list[str]]:
    """Collects the layers that GPTQ rounded to nearest within this context, as it could not invert their Hessians."""
    from llmcompressor.modifiers.gptq import GPTQModifier

    names: list[str] = []
    tell = GPTQModifier._log_rtn_fallback_summary

    def told(self: Any) -> None:
        names.extend(self._rtn_fallback_module_names)
        tell(self)

    GPTQModifier._log_rtn_fallback_summary = told
    try:
        yield names
    finally:
        GPTQModifier._log_rtn_fallback_summary = tell
