"""What may be gated: by which test a metric is judged, and which change of it does not matter.

Only the standard library is imported here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.errors import did_you_mean

Written = Literal["relative", "points", "nat"]
"""How a threshold is written: as a part of BASE's figure, as a difference of shares (1% is 0.01), or in nats."""
Test = Literal["paired", "processes", "exact"]
"""Item by item; one figure per process of either side; or as counts without noise."""


@dataclass(frozen=True)
class Gate:
    """``default`` is the threshold where none is written. ``usual`` gates are in force where a user names none."""

    name: str
    metric: str
    written: Written
    default: float
    test: Test
    says: str
    usual: bool = True


GATES: Mapping[str, Gate] = {
    gate.name: gate
    for gate in (
        Gate("perplexity", "nll", "relative", 0.005, "paired", "perplexity, window by window"),
        Gate("kl", "kl", "nat", 0.001, "paired", "mean KL divergence from the baseline, window by window"),
        Gate("agreement", "top1_agreement", "points", 0.01, "paired", "top-1 agreement with the baseline", False),
        Gate("accuracy", "task_score", "points", 0.01, "paired", "a task's headline score, question by question"),
        Gate("prefill", "prefill_s", "relative", 0.05, "processes", "prefill speed at each point of the grid"),
        Gate("decode", "decode_step_s", "relative", 0.05, "processes", "decoding speed at each point of the grid"),
        Gate("peak_memory", "peak_memory_bytes", "relative", 0.05, "processes", "peak memory of generating"),
        Gate("prefill_energy", "prefill_j_per_tok", "relative", 0.1, "processes", "energy of a prompt's token", False),
        Gate("decode_energy", "decode_j_per_tok", "relative", 0.1, "processes", "energy of a new token", False),
        Gate("stored_bytes", "stored_bytes", "relative", 0.0, "exact", "bytes of all weights as loaded"),
        Gate("bits_per_weight", "stored_bytes", "relative", 0.0, "exact", "bits of a decoder weight with its scales"),
        Gate("checkpoint_bytes", "checkpoint_file_bytes", "relative", 0.001, "exact", "bytes of the weight files"),
        Gate("kv_cache", "kv_cache_bytes_per_token", "relative", 0.0, "exact", "bytes of the cache per token"),
        Gate("coverage", "coverage", "points", 0.0, "exact", "quantized over eligible parameters"),
    )
}
"""Every gate by its name. The direction in which a metric is better stands in its measurements."""


def threshold(name: str, written: object) -> float:
    """A threshold as a user writes it: ``0.5%`` or ``0.005``; of a divergence a number of nats.

    Raises ValueError for an unknown gate and for what is no threshold of this one.
    """
    gate = GATES.get(name)
    if gate is None:
        raise ValueError(f"unknown gate {name!r}{did_you_mean(name, GATES)}")
    value = _number(written)
    percent = isinstance(written, str) and written.strip().endswith("%")
    if value is None or (percent and gate.written == "nat"):
        like = "a number of nats such as 0.001" if gate.written == "nat" else "a share such as 0.5% or 0.005"
        raise ValueError(f"{name}: expected {like}, not {written!r}")
    if not (math.isfinite(value) and value >= 0) or (gate.written != "nat" and value >= 1):
        raise ValueError(
            f"{name}: a threshold is at least 0" + (" and less than 100%" if gate.written != "nat" else "")
        )
    if value == 0 and gate.test != "exact":
        raise ValueError(f"{name}: measured with noise, which no threshold of 0 allows for; say what does not matter")
    return value


def shown(name: str, value: float) -> str:
    """A threshold as a user writes it."""
    return f"{value:g} nat" if GATES[name].written == "nat" else f"{value * 100:g}%"


def _number(written: object) -> float | None:
    if isinstance(written, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE]-?\d+)?)\s*(%?)\s*", written)
        return float(match[1]) / (100 if match[2] else 1) if match else None
    return float(written) if isinstance(written, int | float) and not isinstance(written, bool) else None
