"""Specs from schema version 1, where every run had the fields of all kinds of runs, to version 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

OF_MODELS: Mapping[str, tuple[str, ...]] = {
    "prepare": (),
    "calibrate": ("calibration", "evaluations", "allow_leak"),
    "probe": (),
}
"""Kinds of runs of version 1 that were of a model, with the other fields that counted there."""
OF_VARIANTS: Mapping[str, tuple[str, ...]] = {
    "convert": (),
    "quantize": (),
    "reference": ("perplexity",),
    "quality": ("perplexity", "divergence", "allow_leak"),
    "task": ("task", "allow_leak"),
    "performance": ("throughput", "energy"),
}
"""The same of those that were of a variant."""
FOR_READERS: Mapping[str, tuple[str, ...]] = {
    "quality": ("gates",),
    "task": ("gates",),
    "performance": ("budget_bytes", "price", "gates"),
}
CONDITIONS = ("device", "threads", "attention", "memory")
ENVIRONMENT = ("stack", "lock", "hardware", "versions", "repetition")
VARIANT: Mapping[str, Any] = {"skip": [], "overrides": {}, "calibration": None, "kv_cache": "model", "seed": 0}
"""What a variant's fields are where a record was written before there were any. It always has these:"""
VARIANT_ALWAYS = ("model", "method", "engine", "scope")
FIELDS = frozenset(
    {"kind", "recipe", "baseline", "limits", "needs", "evaluations", "perplexity", "divergence", "task", "throughput"}
    | {"energy", "allow_leak", "budget_bytes", "price", "gates", *CONDITIONS, *ENVIRONMENT, *VARIANT, *VARIANT_ALWAYS}
)


def is_whole(spec: object) -> bool:
    """Whether a spec of version 1 has all of its fields. One that lacks some was named, by its run id, without them."""
    return isinstance(spec, dict) and spec.keys() >= FIELDS


def upgraded(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The raw JSON of a spec of version 1 as version 2 has it. What is missing stays so, for the decoder to name."""
    kind = str(spec.get("kind"))
    job = {**_held(spec, ["kind"]), "conditions": _held(spec, CONDITIONS)}
    environment = _held(spec, ENVIRONMENT)
    if kind in OF_MODELS:
        job |= _held(spec, ["model", *OF_MODELS[kind]])
    elif kind in OF_VARIANTS:
        job |= {"variant": {**VARIANT, **_held(spec, [*VARIANT_ALWAYS, *VARIANT])}, **_held(spec, ["baseline"])}
        job |= _held(spec, OF_VARIANTS[kind])
    if kind in ("task", "performance"):
        job["verify"] = spec.get("perplexity") is None
    if kind != "machine" and isinstance(method := spec.get("method"), Mapping):
        environment |= {f"method_{name}": method[name] for name in ("version",) if name in method}
    return {
        **_held(spec, ["recipe"]),
        "job": job,
        "environment": environment,
        **_held(spec, ["needs", "limits"]),
        "readers": _held(spec, FOR_READERS.get(kind, ())),
    }


def _held(spec: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: spec[name] for name in names if name in spec}
