"""The versions that a run depends on: libraries, and parts of the harness whose change makes another figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from harness import plugins as registry
from harness.core.identity import digest
from harness.core.run import RunSpec
from harness.core.site import MAIN, Site
from harness.engines.transformers.kv_cache import VERSION as KV_CACHE_VERSION
from harness.metrics.machine import VERSION as MACHINE_VERSION
from harness.models import published
from harness.models.gguf.convert import VERSION as GGUF_VERSION
from harness.models.prepare import VERSION as PREPARE_VERSION
from harness.numerics.traffic import VERSION as TRAFFIC_VERSION
from harness.planning.expand import Variant
from harness.text.calibration import VERSION as CALIBRATION_VERSION
from harness.text.windows import VERSION as WINDOWS_VERSION

PROBE_VERSION = 1
"""Raised by every change of the probe's text or of what is kept of it."""
METRICS: Mapping[str, tuple[str, ...]] = {
    "reference": ("divergence",),
    "quality": ("perplexity", "divergence", "memory"),
    "task": ("tasks", "memory"),
    "performance": ("throughput", "memory"),
}
"""Whose versions a figure of a kind of run belongs to."""
ROOM_VERSIONS: Mapping[str, Mapping[str, int]] = {
    "machine": {"machine": MACHINE_VERSION},
    "prepare": {"prepare": PREPARE_VERSION},
    "calibrate": {"calibration": CALIBRATION_VERSION},
    "probe": {"probe": PROBE_VERSION},
    "convert": {"gguf": GGUF_VERSION, "probe": PROBE_VERSION},
    "reference": {"windows": WINDOWS_VERSION},
    "quality": {"windows": WINDOWS_VERSION},
    "performance": {"traffic": TRAFFIC_VERSION},
}
"""What else of the harness an artifact or a figure depends on."""
KIND_PACKAGES: Mapping[str, tuple[str, ...]] = {"task": ("lm-eval", "datasets")}
"""Libraries that only some kinds of run depend on."""


def locked(spec: RunSpec, variant: Variant, site: Site) -> RunSpec:
    """The spec with the versions that a repetition of it at this site must share."""
    runtime = registry.engine(spec.engine)
    if spec.stack != MAIN:
        packages = (*runtime.packages, *variant.method.packages, *KIND_PACKAGES.get(spec.kind, ()))
    else:
        own = variant.method.packages if spec.kind == "quantize" else registry.readers(variant.method)
        own = (*own, *published.readers(spec.method.published or spec.model))
        converts = ("gguf",) if spec.kind == "prepare" and spec.model.kind == "gguf" else ()
        packages = (*runtime.packages, *own, *converts, *KIND_PACKAGES.get(spec.kind, ()))
        packages = (*packages, *runtime.caches.get(spec.kv_cache, ()))
        packages = ("torch",) if spec.kind == "machine" else packages
    lock = {package: site.version(package, spec.stack) for package in packages}
    versions = {name: registry.metric(name).version for name in METRICS.get(spec.kind, ())}
    versions |= ROOM_VERSIONS.get(spec.kind, {})
    if spec.energy and spec.kind == "performance":
        versions["energy"] = registry.metric("energy").version
    if spec.kv_cache != "model":
        versions["kv_cache"] = KV_CACHE_VERSION
    if spec.kind not in ("machine", "prepare", "calibrate", "probe"):
        versions[runtime.name] = runtime.version
    return replace(spec, lock=digest(lock), versions=versions)
