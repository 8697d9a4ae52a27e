"""About the most memory that a run takes, and what it certainly needs: arithmetic of what it holds at once."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from harness.core.engine import FILLED_SHARE, STATES_SHARE, Engine, Held
from harness.core.identity import KvCache, Residency
from harness.core.job import AnswerTask, ConvertModel, Job, KeepProbe, QuantizeModel, VariantJob
from harness.core.layers import layer_of
from harness.core.method import PartsWork
from harness.core.metric import LOGITS_BYTES
from harness.core.model import MAIN_ENGINE
from harness.core.workload import GridCell
from harness.models.memory import DTYPE_BITS, kv_cache_bytes, workspace_bytes
from harness.models.scope import shape_of
from harness.models.shapes import ModelSize, Widths, size_of, widths_of
from harness.models.sources import SourceModel
from harness.planning.expand import MethodChoice
from harness.text.windows import expected_tokens

LIBRARIES_BYTES = 620 * 10**6
"""About what a process holds besides a model: Python, torch, a CUDA context."""
LEAST_BYTES = 2**27
"""What Python and torch take at the very least."""
WIDE_BYTES = 4
"""Of a number in float32."""
COPIES = 3
"""Of the largest matrix in float32, while it is cast, moved to its place, or unpacked for a product."""
ACTIVATIONS = 4
"""States as wide as the widest matrix that a window has in a layer at once."""
LOGITS = 5
"""Stretches of logits at once, by measurement: the model's own, the reference's, and what is left of those before."""
PROBE_TOKENS = 48
"""Of the text whose logits are kept, or compared with those that were."""
KEPT_LOGITS, COMPARED_LOGITS = 4, 20
"""In float32, while they are kept and while they are compared: also in float64, and an engine's own of more tokens."""
TENSOR_COPIES = 9
"""Bytes of a number of the largest tensor while a model is converted: as read, as cast, and a mask that checks it."""
WHOLE_COPIES = 2
"""How often a library that quantizes a whole model has the matrices, by measurement: as loaded, changed or mapped."""
FREED_BYTES = 2**27
"""What the C library keeps of freed memory at most while parts come and go (``host.allocator.KEPT_BYTES``)."""
HELD = 2.1
"""What a suspended window keeps, in times of its hidden states: also the embeddings, masks and positions."""
WORKSPACE = 1.5
"""Times the formula of a prefill's workspace, by measurement on a CPU, whose allocator keeps freed blocks beside it."""
DISPATCHED = 3
"""Copies of a token's states for each expert that it goes to: before and after it, and weighted."""
WRITTEN_LOGITS = 4
"""Last logits of each text in float32 at once: the model's own, chosen from, sorted, and those before."""
SCORED_ROWS = 128
"""Of a task whose answers are scored, so many logits are there at once (``harness.tasks.scoring.CHUNK_ROWS``)."""
COMPILER_BYTES = 250 * 10**6
"""What torch.compile leaves in memory."""
CACHE_BITS: Mapping[KvCache, float] = {"int8": 9.0, "int4": 5.0, "fp8": 8.0}
"""Of a number in a cache of fewer bits, with its share of scales."""
UNROUNDED_TOKENS = 128
"""Of each text in such a cache, so many are kept as they came."""
LAYER_COPIES = 2
"""Of a layer's cache while it grows by a token, besides the one that is kept, and one repeated for each head: unpacked,
and with the new token."""
CERTAIN = 0.9
"""The part of an estimated size of weights that is certain."""


@dataclass(frozen=True)
class ModelLoad:
    """What a job loads: a source, by a method, on an engine (``runtime``).

    ``weight_bytes`` is the size of its weights, None if it is not known, and ``written_bytes`` that of the checkpoint
    that it writes. Of a published checkpoint they are its own, and all shapes are those of ``source``, the model that
    it was made from, which may not be fetched yet. ``engine_params`` are the engine's own, None for its defaults.
    """

    job: Job
    source: SourceModel
    method: MethodChoice
    runtime: Engine[Any]
    weight_bytes: int | None
    written_bytes: int = 0
    engine_params: Any = None

    @property
    def on_gpu(self) -> bool:
        return self.job.conditions.device == "cuda"

    @property
    def size(self) -> ModelSize | None:
        return size_of(self.source)

    @property
    def is_stored_quantized(self) -> bool:
        """Whether the checkpoint that it reads was published quantized."""
        return (self.method.checkpoint or self.source).quantization is not None

    @property
    def keeps_codes(self) -> bool:
        """Whether the codes of such a checkpoint stay packed in memory: they take less than the dense model."""
        parameters = self.source.decoder_parameters + self.source.other_parameters
        return self.is_stored_quantized and (self.weight_bytes or 0) < int(self.plain_bytes * parameters)

    @cached_property
    def plain_bytes(self) -> float:
        """Of an unquantized weight."""
        return DTYPE_BITS.get(self.method.method.run_dtype(self.method.params, self.source.ref.dtype), 16.0) / 8

    @property
    def others_bytes(self) -> float:
        """Of the weights outside the decoder's matrices, which no method quantizes."""
        return self.plain_bytes * self.source.other_parameters

    @property
    def decoder_bytes(self) -> float:
        """Of the decoder's matrices, as they are loaded."""
        return max((self.weight_bytes or 0) - self.others_bytes, 0.0)

    @cached_property
    def layer_parameters(self) -> int:
        """Of the largest layer."""
        return sum(map(math.prod, largest_layer(self.source)))

    @property
    def layer_bytes(self) -> float:
        """Of the largest layer, as it is loaded."""
        return self.decoder_bytes * (self.layer_parameters / self.source.decoder_parameters)

    @cached_property
    def next_layer_bytes(self) -> float:
        """Of the layer that is read ahead of its turn, as it is stored: an unquantized one maybe in a wider dtype."""
        if self.is_stored_quantized or (self.method.method.stage == "offline" and not self.job.quantizes):
            return self.layer_bytes
        source = self.source
        stored = round(source.stored_bytes / (source.decoder_parameters + source.other_parameters))
        return max(self.layer_bytes, self.layer_parameters * max(self.plain_bytes, stored))

    @property
    def head_bytes(self) -> float:
        """Of the head, which has as many parameters as the embedding whether they are tied or not."""
        known = self.size.vocabulary * self.size.hidden if self.size else 0
        return self.plain_bytes * known or self.others_bytes

    @property
    def compared_bytes(self) -> float:
        """What stays loaded for comparing: the reference's head."""
        effort = self.job.effort
        return self.head_bytes if effort.compared or effort.kept else 0.0

    @property
    def logits_bytes(self) -> float:
        scored, vocabulary = self.job.effort.scored, self.size.vocabulary if self.size else 0
        if scored is None:
            copies = {KeepProbe: KEPT_LOGITS, ConvertModel: COMPARED_LOGITS}.get(type(self.job), 0)
            return copies * WIDE_BYTES * PROBE_TOKENS * vocabulary
        return LOGITS * min(LOGITS_BYTES, WIDE_BYTES * scored.context * vocabulary or LOGITS_BYTES)

    @cached_property
    def working_bytes(self) -> float:
        """What a layer takes besides its weights while it is loaded and computes."""
        shapes = largest_layer(self.source)
        scored = self.job.effort.scored
        widest = max(outputs for outputs, _ in shapes)
        activations = ACTIVATIONS * WIDE_BYTES * scored.context * widest if scored else 0
        return COPIES * WIDE_BYTES * max(outputs * inputs for outputs, inputs in shapes) + activations

    @cached_property
    def held(self) -> Held:
        """What the engine holds for texts."""
        params = self.runtime.params() if self.engine_params is None else self.engine_params
        return self.runtime.holds(params, self.job.conditions.device, "serves" in self.job.uses)

    @cached_property
    def written(self) -> GridCell | None:
        """The largest texts that are written together, or that the engine's cache has room for."""
        cell = self.job.effort.largest
        if cell is None or self.held.texts is None:
            return cell
        rows, tokens = self.held.texts
        context = self.source.context_length or tokens
        return replace(cell, batch_size=rows, new_tokens=max(min(tokens, context) - cell.prompt_tokens, 0))

    @cached_property
    def widths(self) -> Widths | None:
        """None if the memory of the texts that it writes is not known, or if it writes none."""
        cell = self.written
        return widths_of(self.source, cell.prompt_tokens + cell.new_tokens) if cell else None

    @property
    def writing_bytes(self) -> float:
        """Of the texts that it writes: their cache unless the engine has reserved it, the states of a prefill or a
        layer's cache that grows, and logits.

        Compiled decoding is compared with eager decoding, which has a cache of its own.
        """
        cell, widths, held = self.written, self.widths, self.held
        if cell is None or widths is None:
            return 0.0
        rows, bits = cell.batch_size, 8 * self.plain_bytes
        tokens = math.ceil((cell.prompt_tokens + cell.new_tokens) / held.block) * held.block
        cache = 0.0 if held.cache_bytes is not None else self._cache_bytes(widths, tokens, rows)
        if cell.decode_mode == "compiled":
            cache = 2 * cache + COMPILER_BYTES
        step = min(rows * cell.prompt_tokens, held.step_tokens or sys.maxsize)
        routed = self.size.routed if self.size else 0
        prefill = WORKSPACE * workspace_bytes(widths, step, 1, bits)
        prefill += DISPATCHED * routed * step * widths.hidden * self.plain_bytes
        growing = 0.0
        if held.step_tokens is None:
            attention = widths.attention
            layer = max((each.numbers(tokens) for each in attention.layers), default=0)
            repeated = 2 * attention.heads * attention.head_dim * tokens
            growing = rows * self.plain_bytes * (LAYER_COPIES * layer + repeated)
        scored = SCORED_ROWS if isinstance(self.job, AnswerTask) else 0
        logits = WRITTEN_LOGITS * WIDE_BYTES * max(rows, scored, held.logit_rows) * widths.vocabulary
        return cache + max(prefill, growing) + logits

    def _cache_bytes(self, widths: Widths, tokens: int, rows: int) -> float:
        kind = self.job.variant.kv_cache if isinstance(self.job, VariantJob) else "model"
        own_bits = self.held.cache_bits or 8 * self.plain_bytes
        if kind not in CACHE_BITS:
            return kv_cache_bytes(widths, tokens, rows, own_bits)
        unrounded = kv_cache_bytes(widths, min(tokens, UNROUNDED_TOKENS), rows, own_bits)
        return kv_cache_bytes(widths, tokens, rows, CACHE_BITS[kind]) + unrounded

    def states_bytes(self, memory_bytes: int) -> float:
        """Of all windows of the text between two layers: in a share of the memory, if that is known, else on disk."""
        scored = self.job.effort.scored
        if scored is None:
            return 0.0
        overlap = scored.context / scored.stride if scored.stride and scored.windows is None else 1.0
        hidden = self.size.hidden if self.size else 0
        whole = HELD * overlap * expected_tokens(scored) * hidden * self.plain_bytes
        return min(whole, STATES_SHARE * memory_bytes) if memory_bytes else whole

    @property
    def quantizes(self) -> bool:
        """Whether it quantizes what it loads as a whole: in a run for that, or while it is loaded."""
        on_load = self.method.method.stage == "on_load" and self.runtime.name == MAIN_ENGINE
        return on_load or isinstance(self.job, QuantizeModel)

    @property
    def unquantized_bytes(self) -> float:
        """What is quantized while it is loaded, in main memory: mapped, and read ahead by transformers."""
        if self.method.method.stage != "on_load" or self.on_gpu or self.runtime.name != MAIN_ENGINE:
            return 0.0
        return WHOLE_COPIES * self.plain_bytes * (self.source.decoder_parameters + self.source.other_parameters)

    @property
    def other_dtype_times(self) -> float:
        """How much larger a baseline is in the other dtype in which a reference run loads it again; 0 if it does not.

        It measures a noise floor.
        """
        if not self.job.effort.kept or self.keeps_codes:
            return 0.0
        return 0.5 if self.plain_bytes == WIDE_BYTES else WIDE_BYTES / self.plain_bytes

    def other_dtype_bytes(self, memory_bytes: int) -> float:
        """Of that second copy, in memory as a whole. It is not made if it does not fit."""
        size = self.other_dtype_times * (self.weight_bytes or 0)
        return 0.0 if memory_bytes and size > memory_bytes else size


@lru_cache(maxsize=16)
def largest_layer(source: SourceModel) -> Sequence[tuple[int, int]]:
    """The shapes (outputs, inputs) of the matrices of the layer that has most parameters, one for each expert."""
    layers: dict[str, list[tuple[int, int]]] = {}
    for name, shape in source.matrices.items():
        *stacked, outputs, inputs = shape_of(name, shape, source.model_type)
        layers.setdefault(layer_of(name) or name, []).extend([(outputs, inputs)] * math.prod(stacked))
    return max(layers.values(), key=lambda layer: sum(map(math.prod, layer)))


def beside_bytes(load: ModelLoad) -> int:
    """What a run that has its model in memory as a whole needs besides its weights; 0 if it is not known."""
    if load.weight_bytes is None or not load.source.matrices:
        return 0
    if isinstance(load.job, QuantizeModel):
        codes = max(load.written_bytes - load.others_bytes, 0)
        return math.ceil(LIBRARIES_BYTES + load.working_bytes + 2 * codes)  # once more while a file of them is written
    computing = 0.0
    if load.job.effort.scored is not None or isinstance(load.job, KeepProbe | ConvertModel):
        computing = load.working_bytes + load.logits_bytes
    elif load.written is not None:
        computing = load.working_bytes + load.writing_bytes
    reserved = load.held.libraries_bytes + (load.held.cache_bytes or 0)
    return math.ceil(LIBRARIES_BYTES + reserved + load.compared_bytes + computing)


def peak_bytes(load: ModelLoad, residency: Residency, memory_bytes: int) -> int | None:
    """About the most memory that a run needs, of ``memory_bytes`` (0 if not known); None if sizes are not known."""
    usual = _loaded_peak_bytes(load, residency, memory_bytes)
    if usual is None or not isinstance(load.job, QuantizeModel):
        return usual
    return _quantizing_peak_bytes(load, load.job, residency, usual)


def _loaded_peak_bytes(load: ModelLoad, residency: Residency, memory_bytes: int) -> int | None:
    """That of a run that computes with what it loads.

    Resident: all weights, and in a reference run those of its second copy: on a CPU the first checkpoint stays mapped;
    the texts that a run writes; or the share of a GPU that its engine fills in any case. Or what a run that quantizes
    while loading has meanwhile.
    Streamed: the layer that computes and on a CPU the next one, or at the end the head with logits, in a reference run
    in the second copy's dtype too; and all the time the states of the windows, the reference's head, and on a CPU freed
    memory that is kept for the next layer.
    """
    weights = load.weight_bytes
    if weights is None or not load.source.matrices or (load.written is not None and load.widths is None):
        return None
    if residency == "resident":
        second = load.other_dtype_bytes(memory_bytes)
        computing = beside_bytes(load) + (max(weights, second) if load.on_gpu else weights + second)
        computing = max(computing, load.held.share * memory_bytes)
        return math.ceil(max(computing, LIBRARIES_BYTES + weights + load.unquantized_bytes))
    gathered = load.written_bytes if load.method.method.gathers_parts else 0
    at_once = max(_largest_part_bytes(load), _largest_part_bytes(load, load.other_dtype_times), gathered)
    computes = load.job.effort.scored is not None and not load.on_gpu
    freed = min(FREED_BYTES, load.working_bytes + load.logits_bytes) if computes else 0.0
    beside = LIBRARIES_BYTES + load.compared_bytes + at_once + freed
    states = load.states_bytes(memory_bytes)
    if memory_bytes and not load.on_gpu:
        states = min(states, max(FILLED_SHARE * memory_bytes - beside, 0.0))
    return math.ceil(beside + states)


def _largest_part_bytes(load: ModelLoad, times: float = 1.0) -> float:
    """What a streamed model takes at most with its largest part, in a dtype that makes it so many times as large."""
    ahead = 0.0 if load.on_gpu else load.next_layer_bytes
    layers = times * load.layer_bytes + ahead + load.working_bytes
    return max(layers, times * load.others_bytes, times * load.head_bytes + load.logits_bytes)


def converting_peak_bytes(load: ModelLoad) -> int | None:
    """About the most memory that converting a model takes: a tensor at a time is written, then all of it is loaded.

    A layer's experts, which have one shape, are one tensor. None if sizes are not known.
    """
    if load.weight_bytes is None:
        return None
    experts = Counter(largest_layer(load.source))
    stacked = max(outputs * inputs * count for (outputs, inputs), count in experts.items())
    head = load.size.vocabulary * load.size.hidden if load.size else 0
    writing = LIBRARIES_BYTES + TENSOR_COPIES * max(stacked, head)
    return math.ceil(max(writing, beside_bytes(load) + load.weight_bytes))


def least_bytes(load: ModelLoad) -> int:
    """What a streamed run certainly needs: a layer, on a CPU the next one as it is stored, or the head."""
    if load.weight_bytes is None or not load.source.matrices:
        return 0
    ahead = 0.0
    if load.job.effort.scored and not load.on_gpu and not load.is_stored_quantized:
        ahead = min(1.0, 2 / load.plain_bytes)  # a checkpoint of 16 bits may be cast to float32 as it is loaded
    layers = load.layer_bytes * (1 + ahead * (load.layer_bytes < load.decoder_bytes))
    if isinstance(load.job, QuantizeModel) and load.method.method.reads_tensors and not load.method.calibrated:
        layers = 0.0
    base = 0 if load.on_gpu else LEAST_BYTES
    return base + int(CERTAIN * max(layers, load.head_bytes if load.size and load.size.vocabulary else 0))


def _quantizing_peak_bytes(load: ModelLoad, job: QuantizeModel, residency: Residency, usual: int) -> int:
    """That of a run that quantizes its source, where loading and computing with it takes ``usual``.

    From disk to disk by the method's own account if it has one. What it counts for a layer, and all matrices besides,
    take those that its library quantizes in memory as a whole.
    """
    source, method, size, calibration = load.source, load.method, load.size, job.variant.calibration
    if load.weight_bytes is None or size is None or method.method.parts_peak is None:
        return usual
    if residency == "resident" and method.method.reads_tensors:  # the model is gone before it works on tensors
        return usual
    plain_bytes = load.weight_bytes / size.parameters
    work = PartsWork(
        layer=largest_layer(source),
        plain_bytes=plain_bytes,
        others_bytes=math.ceil(plain_bytes * source.other_parameters),
        written_bytes=load.written_bytes,
        hidden=size.hidden,
        vocabulary=size.vocabulary,
        heads=size.heads,
        rows=calibration.samples if calibration else 0,
        length=calibration.length if calibration else 0,
    )
    in_parts = math.ceil(method.method.parts_peak(method.params, work))
    if residency == "streamed":
        return in_parts
    return max(usual, in_parts + WHOLE_COPIES * max(load.weight_bytes - work.others_bytes, 0))
