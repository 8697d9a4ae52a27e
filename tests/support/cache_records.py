"""Records of weights of some bits with key-value caches of others, whose damage is planted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.core.model import MethodRef
from harness.core.record import RunRecord

EIGHT, FOUR = (MethodRef("rtn", 1, {"bits": bits}, f"rtn bits={bits}", "on_load") for bits in (8, 4))
DAMAGE_NAT: Mapping[tuple[str, str], float] = {
    ("none", "int8"): 0.002,
    ("none", "int4"): 0.1,
    ("rtn bits=8", "model"): 0.004,
    ("rtn bits=8", "int8"): 0.006,
    ("rtn bits=8", "int4"): 0.2,
    ("rtn bits=4", "model"): 0.3,
    ("rtn bits=4", "int8"): 0.32,
}
"""By the label of the weights' method and the cache."""
BITS = {"none": 32, "rtn bits=8": 8.5, "rtn bits=4": 4.5}


def cache_grid(
    bench: Any, none: MethodRef, damage_nat: Mapping[tuple[str, str], float] = DAMAGE_NAT
) -> list[RunRecord]:
    """A baseline, and a variant of each damage."""
    methods = {"none": none, **{each.label: each for each in (EIGHT, FOUR)}}
    variants = (
        replace(bench, kv_cache=cache).quality(methods[label], BITS[label], nat)
        for (label, cache), nat in damage_nat.items()
    )
    return [bench.quality(none), *variants]
