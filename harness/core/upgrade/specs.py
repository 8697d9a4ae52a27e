"""Upgrades specs from schema version 1, in which every run had the fields of all kinds, to version 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

OF_MODELS: Mapping[str, tuple[str, ...]] = {
    "prepare": (),
    "calibrate": ("calibration", "evaluations", "allow_leak"),
    "probe": (),
}
"""Kinds of version 1 runs that belong to a model, with the other fields that they use."""
OF_VARIANTS: Mapping[str, tuple[str, ...]] = {
    "convert": (),
    "quantize": (),
    "reference": ("perplexity",),
    "quality": ("perplexity", "divergence", "allow_leak"),
    "task": ("task", "allow_leak"),
    "performance": ("throughput", "energy"),
}
"""The same for kinds that belong to a variant."""
FOR_READERS: Mapping[str, tuple[str, ...]] = {
    "quality": ("gates",),
    "task": ("gates",),
    "performance": ("budget_bytes", "price", "gates"),
}
CONDITIONS = ("device", "threads", "attention", "memory")
ENVIRONMENT = ("stack", "lock", "hardware", "versions", "repetition")
VARIANT: Mapping[str, Any] = {"skip": [], "overrides": {}, "calibration": None, "kv_cache": "model", "seed": 0}
"""Defaults for a variant's fields that are missing from the oldest records."""
VARIANT_ALWAYS = ("model", "method", "engine", "scope")
FIELDS = frozenset(
    {"kind", "recipe", "baseline", "limits", "needs", "evaluations", "perplexity", "divergence", "task", "throughput"}
    | {"energy", "allow_leak", "budget_bytes", "price", "gates", *CONDITIONS, *ENVIRONMENT, *VARIANT, *VARIANT_ALWAYS}
)


def is_whole(spec: object) -> bool:
    """Whether a version 1 spec has all of its fields. The run id of an incomplete one was computed without them."""
    return isinstance(spec, dict) and spec.keys() >= FIELDS


def upgraded(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The version 2 JSON of a version 1 spec. Missing fields stay missing, so that the decoder reports them."""
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
