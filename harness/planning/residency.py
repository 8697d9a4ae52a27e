"""Which runs read their model from disk part by part, because it does not fit or because the recipe says so."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.core.engine import Engine
from harness.core.identity import Residency
from harness.core.job import Conditions, MakeReference, MeasureQuality, QuantizeModel, VariantJob, WriteText
from harness.core.layers import layer_of
from harness.core.method import PartsWork
from harness.core.model import MAIN_ENGINE
from harness.core.site import Machine
from harness.core.workload import CalibrationRef
from harness.models import published
from harness.models.scope import shape_of
from harness.models.shapes import size_of
from harness.models.sources import SourceModel
from harness.planning.expand import MethodChoice

Wanted = Literal["auto", "resident", "streamed"]
WEIGHTS_SHARE = 0.75
"""Of main memory, for weights that are loaded whole: libraries, activations and logits need the rest."""


LIBRARIES_BYTES = 2**29
"""About what a process holds besides weights: Python, torch, a CUDA context, activations of a few windows."""


@dataclass(frozen=True)
class Residence:
    """Where a run has its model; ``unsupported`` is why it cannot have it there, ``note`` what its user should know."""

    residency: Residency = "resident"
    unsupported: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class ModelLoad:
    """What a job loads: a source, by a method, on an engine (``runtime``).

    ``weight_bytes`` is the size of its weights, None if it is not known, and ``written_bytes`` that of the checkpoint
    that it writes.
    """

    job: VariantJob
    source: SourceModel
    method: MethodChoice
    runtime: Engine[Any]
    weight_bytes: int | None
    written_bytes: int = 0


@dataclass(frozen=True)
class Room:
    """The memory that a run's weights may take of all that there is, and what limits it; 0 if it is not known."""

    bytes: int
    all_bytes: int
    of: str

    def excess(self, weight_bytes: int | None) -> str | None:
        """Why weights do not fit; None if they do, or their size is not known."""
        if weight_bytes is None or not self.bytes or weight_bytes <= self.bytes:
            return None
        needed, have = weight_bytes / 2**30, self.bytes / 2**30
        return f"its weights take {needed:.1f} GiB, of {have:.1f} GiB that {self.of} leaves them"

    def holds(self, weight_bytes: int | None) -> bool:
        """Whether weights fit if they take all of it, as far as the sizes are known."""
        return weight_bytes is None or not self.all_bytes or weight_bytes <= self.all_bytes


def room(machine: Machine, conditions: Conditions, limit_bytes: int | None) -> Room:
    """What a run has for its weights: of the GPUs' memory all, of main memory, or its limit, three quarters."""
    if machine.device == "cuda":
        size = machine.memory_bytes * conditions.gpus
        return Room(size, size, "the GPU")
    known = [(limit_bytes, "limits.memory"), (machine.memory_bytes, "this machine's memory")]
    least, of = min(((size, name) for size, name in known if size), default=(0, ""))
    return Room(int(WEIGHTS_SHARE * least), least, of)


def peak_bytes(
    source: SourceModel, weight_bytes: int | None, residency: Residency, gathered_bytes: int = 0
) -> int | None:
    """About the most memory that a run needs: all weights, or two layers of them, or what is larger of other parts.

    Those are embedding and head, and what a streamed run gathers until its end.
    """
    if weight_bytes is None or residency == "resident":
        return None if weight_bytes is None else LIBRARIES_BYTES + weight_bytes
    layers: Counter[str] = Counter()
    for name, shape in source.matrices.items():
        layers[layer_of(name) or name] += math.prod(shape)
    per_parameter = weight_bytes / (source.decoder_parameters + source.other_parameters)
    at_once = max(2 * max(layers.values()), source.other_parameters)
    return LIBRARIES_BYTES + max(math.ceil(at_once * per_parameter), gathered_bytes)


def quantizing_peak_bytes(
    source: SourceModel,
    method: MethodChoice,
    weight_bytes: int | None,
    written_bytes: int,
    calibration: CalibrationRef | None,
) -> int | None:
    """About the most memory that quantizing the source from disk to disk takes, by the method's own account if it has
    one; None if the source's shapes are not known yet.
    """
    size = size_of(source)
    if weight_bytes is None or size is None or method.method.parts_peak is None:
        gathered = written_bytes if method.method.gathers_parts else 0
        return peak_bytes(source, weight_bytes, "streamed", gathered)
    plain_bytes = weight_bytes / size.parameters
    calibrated = calibration if method.calibrated else None
    work = PartsWork(
        layer=_largest_layer(source),
        plain_bytes=plain_bytes,
        others_bytes=math.ceil(plain_bytes * source.other_parameters),
        written_bytes=written_bytes,
        hidden=size.hidden,
        vocabulary=size.vocabulary,
        heads=size.heads,
        rows=calibrated.samples if calibrated else 0,
        length=calibrated.length if calibrated else 0,
    )
    return math.ceil(method.method.parts_peak(method.params, work))


def _largest_layer(source: SourceModel) -> Sequence[tuple[int, int]]:
    """The shapes (outputs, inputs) of the matrices of the layer that has most parameters, one for each expert."""
    layers: dict[str, list[tuple[int, int]]] = {}
    for name, shape in source.matrices.items():
        *stacked, outputs, inputs = shape_of(name, shape, source.model_type)
        layers.setdefault(layer_of(name) or name, []).extend([(outputs, inputs)] * math.prod(stacked))
    return max(layers.values(), key=lambda layer: sum(map(math.prod, layer)))


def place(wanted: Wanted, load: ModelLoad, available: Room) -> Residence:
    """``auto`` streams what does not fit, or loads it whole if it cannot be streamed and its weights alone would fit.

    What can be neither loaded nor streamed is unsupported, with both reasons.
    """
    job, method, weight_bytes, written_bytes = load.job, load.method, load.weight_bytes, load.written_bytes
    excess = available.excess(weight_bytes) if load.runtime.name == MAIN_ENGINE else None
    if wanted == "auto" and excess is None:
        return Residence()
    obstacle, on_cpu = _obstacle(load), job.conditions.device == "cpu"
    if wanted == "resident":
        cannot = excess is not None and on_cpu and not available.holds(weight_bytes)
        offer = "" if obstacle else "; with residency: streamed it need not be in memory as a whole"
        return Residence(unsupported=f"{excess}{offer}" if cannot else None)
    if obstacle is None and method.method.gathers_parts and on_cpu and not available.holds(written_bytes):
        needed, have = written_bytes / 2**30, available.all_bytes / 2**30
        obstacle = (
            f"{method.ref.name} has the quantized model in memory as a whole at its end, which takes {needed:.1f} GiB "
            f"of {have:.1f} GiB; use fewer bits, or a method that leaves its layers on disk"
        )
    if obstacle is None:
        return Residence("streamed", note=f"streamed from disk: {excess}" if excess else "streamed from disk")
    if wanted == "auto" and available.holds(weight_bytes):
        return Residence(note=f"loaded whole although it may not fit: {excess}")
    if isinstance(job, QuantizeModel) and (not on_cpu or available.holds(weight_bytes)):
        return Residence()  # on a GPU its library may keep a part of the model in main memory
    if wanted == "streamed":
        return Residence(unsupported=obstacle)
    return Residence(unsupported=f"{excess}, and {obstacle}")


def _obstacle(load: ModelLoad) -> str | None:
    """Why a job cannot read its model part by part; None if it can."""
    job, source, method, runtime = load.job, load.source, load.method, load.runtime
    if isinstance(job, QuantizeModel):
        if method.method.quantize_parts is None:
            return f"{method.ref.name} quantizes only a model that is in memory as a whole"
        return method.method.refuses_parts(source.model_type, source.multimodal)
    if isinstance(job, WriteText):
        return (
            "a streamed baseline writes no text, as each token would read all weights again; score a text that exists, "
            "or keep the model in memory as a whole on a machine where it fits (residency: resident)"
        )
    if not isinstance(job, MakeReference | MeasureQuality):
        return (
            f"a streamed model has quality only: a {job.kind} run needs it in memory as a whole; measure it with "
            "residency: resident on a machine where it fits"
        )
    if not runtime.streams:
        return f"{runtime.name} cannot stream a model; the engine {MAIN_ENGINE} can"
    if job.variant.kv_cache != "model":
        return f"kv_cache {job.variant.kv_cache} reads a text in chunks, each of which would read all weights again"
    if job.conditions.devices != 1:
        return "a streamed model computes on one device; leave 'devices' out"
    quantization = (method.checkpoint or source).quantization
    if quantization is not None and (reason := published.unstreamed(quantization, job.conditions.device)):
        return reason
    if not (method.method.stage in ("none", "published") or method.method.streams):
        return f"what {method.ref.name} makes is not known to load part by part as it loads whole"
    made = method.method.stored(method.params)
    return published.unstreamed_on(made.quant_method, job.conditions.device) if made else None
