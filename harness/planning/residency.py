"""Which runs read their model from disk part by part, because it does not fit or because the recipe says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.core.identity import Residency
from harness.core.job import (
    Conditions,
    ConvertModel,
    KeepProbe,
    MakeReference,
    MeasureQuality,
    QuantizeModel,
    VariantJob,
    WriteText,
)
from harness.core.site import MAIN, Machine
from harness.models import published
from harness.planning.peaks import CERTAIN, ModelLoad, beside_bytes, least_bytes, peak_bytes

Wanted = Literal["auto", "resident", "streamed"]
WEIGHTS_SHARE = 0.75
"""Of main memory, for weights that are loaded whole: libraries, activations and logits need the rest."""


@dataclass(frozen=True)
class Residence:
    """Where a run has its model; ``unsupported`` is why it cannot have it there, ``note`` what its user should know."""

    residency: Residency = "resident"
    unsupported: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Room:
    """The memory that a run's weights may take of all that there is, and what limits it; 0 if it is not known."""

    bytes: int
    all_bytes: int
    of: str

    def excess(self, weight_bytes: int | None, beside_bytes: int = 0) -> str | None:
        """Why weights do not fit ``beside`` what else the run needs; None if they do, or their size is not known."""
        room_bytes = max(self.bytes - beside_bytes, 0)
        if weight_bytes is None or not self.all_bytes or weight_bytes <= room_bytes:
            return None
        needed, have = weight_bytes / 2**30, room_bytes / 2**30
        return f"its weights take {needed:.1f} GiB, of {have:.1f} GiB that {self.of} leaves them"

    def quantizing_excess(self, load: ModelLoad) -> str | None:
        """Why main memory is too small to quantize a model in it, by the peak of the plan; None if it is not.

        On a GPU, libraries keep in main memory what they do not work on.
        """
        if load.on_gpu or not load.quantizes or not self.all_bytes:
            return None
        peak = peak_bytes(load, "resident", self.all_bytes)
        if peak is None or peak <= self.all_bytes:
            return None
        needed, have = peak / 2**30, self.all_bytes / 2**30
        return f"quantizing it in memory takes about {needed:.1f} GiB, and {self.of} is {have:.1f} GiB"

    def holds(self, weight_bytes: int | None) -> bool:
        """Whether weights fit if they take all of it, as far as the sizes are known."""
        return weight_bytes is None or not self.all_bytes or weight_bytes <= self.all_bytes


def room(machine: Machine, conditions: Conditions, limit_bytes: int | None) -> Room:
    """What a run has for its weights: the GPUs' memory, or three quarters of main memory or of its limit."""
    if machine.device == "cuda":
        size = machine.memory_bytes * conditions.gpus
        return Room(size, size, "the GPU's memory")
    known = [(limit_bytes, "limits.memory"), (machine.memory_bytes, "this machine's memory")]
    least, of = min(((size, name) for size, name in known if size), default=(0, ""))
    return Room(int(WEIGHTS_SHARE * least), least, of)


def place(wanted: Wanted, load: ModelLoad, available: Room) -> Residence:
    """``auto`` streams what does not fit, or loads it whole if it cannot be streamed and its weights alone would fit.

    On a GPU it leaves room for the head of the reference, logits and activations, in main memory for other processes
    too. What can be neither loaded nor streamed is unsupported, with both reasons. Engines that stream nothing load all
    that fits, whatever is wanted.
    """
    job, method, weight_bytes, written_bytes = load.job, load.method, load.weight_bytes, load.written_bytes
    if not load.runtime.streams:
        told = wanted == "streamed" and not load.runtime.remote
        note = f"loaded whole: {load.runtime.name} streams nothing" if told else None
        return Residence(unsupported=overfull_elsewhere(load, available), note=note)
    beside = beside_bytes(load) if load.on_gpu else 0
    excess = available.excess(weight_bytes, beside) or available.quantizing_excess(load)
    if wanted == "auto" and excess is None:
        return Residence()
    obstacle, on_cpu = _obstacle(load), job.conditions.device == "cpu"
    whole = on_cpu or not (isinstance(job, QuantizeModel) and method.method.offloads)
    if wanted == "resident":
        cannot = excess is not None and whole and not available.holds(weight_bytes)
        more = "" if on_cpu or isinstance(job, QuantizeModel) else "; use fewer bits, or more 'devices'"
        offer = "" if obstacle else "; with residency: streamed it need not be in memory as a whole"
        return Residence(unsupported=f"{excess}{more}{offer}" if cannot else None)
    if obstacle is None and method.method.gathers_parts and on_cpu and not available.holds(written_bytes):
        needed, have = written_bytes / 2**30, available.all_bytes / 2**30
        obstacle = (
            f"{method.ref.name} has the quantized model in memory as a whole at its end, which takes {needed:.1f} GiB "
            f"of {have:.1f} GiB; use fewer bits, or a method that leaves its layers on disk"
        )
    if obstacle is None and (shortage := _shortage(load, available)):
        return Residence(unsupported=shortage)
    if obstacle is None:
        return Residence("streamed", note=f"streamed from disk: {excess}" if excess else "streamed from disk")
    if wanted == "auto" and available.holds(weight_bytes):
        return Residence(note=f"loaded whole although it may not fit: {excess}")
    if isinstance(job, QuantizeModel) and (not whole or available.holds(weight_bytes)):
        return Residence()
    if wanted == "streamed":
        return Residence(unsupported=obstacle)
    return Residence(unsupported=f"{excess}, and {obstacle}")


def overfull_elsewhere(load: ModelLoad, available: Room) -> str | None:
    """Why main memory certainly cannot hold what another engine loads, which streams nothing; None if it may do.

    Only of weights whose size follows from their parameters: a file that was published quantized is not judged.
    """
    published = load.method.checkpoint is not None or load.source.ref.kind == "gguf"
    known = isinstance(load.job, ConvertModel) or not published
    if load.runtime.streams or load.on_gpu or load.weight_bytes is None or not known:
        return None
    if available.holds(int(CERTAIN * load.weight_bytes)):
        return None
    return (
        f"its weights take {load.weight_bytes / 2**30:.1f} GiB, {load.runtime.name} has all of them in memory, and "
        f"{available.of} is {available.all_bytes / 2**30:.1f} GiB; use fewer bits, or a machine with more memory"
    )


def _shortage(load: ModelLoad, available: Room) -> str | None:
    """Why there is certainly too little memory for a streamed run; None if it may do."""
    least = least_bytes(load)
    if available.holds(least):
        return None
    parts = "a layer" if load.on_gpu else "Python, and a layer with the next one"
    return (
        f"streamed from disk it needs at least {least / 2**30:.2f} GiB ({parts}, or the head), and {available.of} is "
        f"{available.all_bytes / 2**30:.2f} GiB; raise limits.memory, or use a machine with more memory"
    )


def _obstacle(load: ModelLoad) -> str | None:
    """Why a job cannot read its model part by part; None if it can."""
    job, source, method = load.job, load.source, load.method
    if isinstance(job, QuantizeModel):
        if method.method.quantize_parts is None and method.method.load_config is None:
            return f"{method.ref.name} quantizes only a model that is in memory as a whole"
        if method.method.stack != MAIN and not method.method.reads_tensors:
            return (
                f"stack {method.method.stack} needs it in memory as a whole, to check that its libraries read the same "
                "model as the main ones"
            )
        return method.method.refuses_parts(method.params, source.model_type, source.multimodal)
    if isinstance(job, WriteText):
        return (
            "a streamed baseline writes no text, as each token would read all weights again; score a text that exists, "
            "or keep the model in memory as a whole on a machine where it fits (residency: resident)"
        )
    if not isinstance(job, MakeReference | MeasureQuality | KeepProbe):
        return (
            f"a streamed model has quality only: a {job.kind} run needs it in memory as a whole; measure it with "
            "residency: resident on a machine where it fits"
        )
    if isinstance(job, VariantJob) and job.variant.kv_cache != "model":
        return f"kv_cache {job.variant.kv_cache} reads a text in chunks, each of which would read all weights again"
    if job.conditions.devices != 1:
        return "a streamed model computes on one device; leave 'devices' out"
    loaded = method.checkpoint or source
    if loaded.quantization is not None:
        stored = published.quantization_config(Path(loaded.ref.path))
        if reason := published.unstreamed(stored, job.conditions.device):
            return reason
    if not (method.method.stage in ("none", "published") or method.method.streams):
        return f"what {method.ref.name} makes is not known to load part by part as it loads whole"
    made = method.method.stored(method.params)
    return published.unstreamed_on(made.quant_method, job.conditions.device) if made else None
