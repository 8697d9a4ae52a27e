"""What readers rely on in the protocol and the items of the harness's own measurements.

Figures look these entries up by name, so a record that lacks one is damaged. Plugins' metrics have protocols of their
own, which no reader looks into.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from harness.core.foreign import quoted
from harness.core.record import Measurement

TORCH_ALLOCATED, TORCH_RESERVED = "cuda allocated", "cuda reserved"
"""Sources of a GPU's memory: what torch's allocator has given out, and what it has taken from the driver."""
DRIVER_SINCE_LOADING = "NVML since loading"
"""The driver's figure less what it counted before the model was loaded."""
DRIVER_PROCESS, DRIVER_GROWTH, DRIVER_WHOLE = "NVML process", "NVML since the start", "NVML device"
"""The driver's figures: of the process, of the whole GPU less what it counted when the process began, and of it all."""
DEVICE_PEAKS = (TORCH_ALLOCATED, DRIVER_SINCE_LOADING)
"""Sources of the memory that a model takes on a GPU. A run has one of them."""
GRID = ("batch_size", "prompt_tokens")
COUNTS = frozenset({*GRID, "new_tokens", "tokens", "working_set_bytes", "starved"})
"""Entries that are whole numbers, or null; all others are texts."""
MAX_COUNT = 2**53
_PHASES = ("prefill", "decode")
NEEDED: Mapping[str, tuple[str, ...]] = {
    "prefill_s": GRID,
    "decode_step_s": GRID,
    **{f"{phase}_j_per_tok": (*GRID, "source") for phase in _PHASES},
    **{f"{phase}_{what}": GRID for phase in _PHASES for what in ("read_bytes", "dequantize_bytes")},
    **{f"{phase}_operations": (*GRID, "dtype") for phase in _PHASES},
    **dict.fromkeys(("stored_bytes", "checkpoint_bytes"), ("role", "part")),
    **dict.fromkeys(("peak_memory_bytes", "memory_after_bytes", "memory_before_bytes"), ("phase", "source")),
    "kv_cache_bytes_per_token": ("after",),
    "allocated_kv_cache_bytes": GRID,
    "bandwidth_byte_per_s": ("working_set_bytes",),
    "matmul_op_per_s": ("dtype",),
    "task_score": ("task", "score", "filter"),
    "expert_tokens": ("starved",),
}
"""Entries that the protocol of a metric must have."""
STARVED_TOKENS = 256
"""An expert that sees fewer calibration tokens is starved: a GPTQ Hessian has at most this rank, and AWQ's means rest
on as few rows."""
ITEMS: Mapping[str, re.Pattern[str]] = {
    "kl": re.compile(r"(?:\d{1,12}:)?\d{1,12}", re.ASCII),
    **dict.fromkeys(("router_overlap", "router_kl"), re.compile(r"\d{1,12}:[\w.]{1,200}", re.ASCII)),
    "expert_tokens": re.compile(r"[\w.]{1,200}: \d{1,12}", re.ASCII),
}
"""The form of items: ``window:position``, or a position alone in early records; ``window:block``; ``block: number``."""


def fault_of(measured: Measurement) -> str | None:
    """What a reader could not use in a measurement of the harness's own, or None."""
    needed = NEEDED.get(measured.metric)
    counted = [name for name in measured.protocol if name in COUNTS] if needed is not None else []
    for name in (*(needed or ()), *counted, *(GRID if "prompt_tokens" in counted else ())):
        value = measured.protocol.get(name)
        if name not in measured.protocol:
            return f"the protocol of {measured.metric} has no {name}"
        if not (_is_count(value) if name in COUNTS else isinstance(value, str)):
            return f"the protocol of {measured.metric} has the {name} {quoted(value)}"
    form = ITEMS.get(measured.metric)
    strange = next((each for each in measured.item_ids if not form.fullmatch(each)), None) if form else None
    return None if strange is None else f"an item of {measured.metric} is {quoted(strange)}, which is not of its form"


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value <= MAX_COUNT)
