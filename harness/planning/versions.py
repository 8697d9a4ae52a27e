"""The versions that a run depends on: libraries, and parts of the harness that affect figures."""

from __future__ import annotations

from collections.abc import Mapping

from harness import plugins as registry
from harness.core.identity import digest
from harness.core.job import AnswerTask, Environment, Job, VariantJob
from harness.core.model import MAIN_ENGINE
from harness.core.site import KERNEL_PACKAGES, MAIN, Machine, Site
from harness.engines.transformers.kv_cache import VERSION as KV_CACHE_VERSION
from harness.metrics.machine import VERSION as MACHINE_VERSION
from harness.models import published
from harness.models.gguf.convert import VERSION as GGUF_VERSION
from harness.models.prepare import VERSION as PREPARE_VERSION
from harness.numerics.traffic import VERSION as TRAFFIC_VERSION
from harness.planning.expand import MethodChoice
from harness.text.calibration import VERSION as CALIBRATION_VERSION
from harness.text.generated import VERSION as GENERATED_VERSION
from harness.text.load import VERSION as LOAD_VERSION
from harness.text.windows import VERSION as WINDOWS_VERSION

PROBE_VERSION = 1
"""Increment it when the probe's text or saved content changes."""
PARTS: Mapping[str, int] = {
    "calibration": CALIBRATION_VERSION,
    "generated": GENERATED_VERSION,
    "gguf": GGUF_VERSION,
    "kv_cache": KV_CACHE_VERSION,
    "load": LOAD_VERSION,
    "machine": MACHINE_VERSION,
    "prepare": PREPARE_VERSION,
    "probe": PROBE_VERSION,
    "traffic": TRAFFIC_VERSION,
    "windows": WINDOWS_VERSION,
}
"""The versions of the parts of the harness that jobs name."""


def environment(
    job: Job, method: MethodChoice, machine: Machine, site: Site, stack: str = MAIN, repetition: int = 0
) -> Environment:
    """The environment of a job, with the versions that its repetitions at this site must share.

    ``method`` is the variant's method; for jobs that all variants share, the baseline's. On a GPU the driver and the
    installed packages with kernels count too.
    """
    versions = {name: registry.metric(name).version for name in job.metrics} | {name: PARTS[name] for name in job.parts}
    packages = job.packages
    if job.models:
        variant = job.variant if isinstance(job, VariantJob) else None
        engine = registry.engine(variant.engine if variant else MAIN_ENGINE)
        kv_cache = variant.kv_cache if variant else "model"
        packages = (*packages, *engine.packages, *_packages(method, job, stack))
        if stack == MAIN:
            packages = (*packages, *engine.caches.get(kv_cache, ()))
        if variant is not None:
            versions |= {engine.name: engine.version, **published.versions(job.models[-1])}
        if isinstance(job, AnswerTask) and engine.writing_version > 1:  # the first one has no entry
            versions |= {f"{engine.name} writing": engine.writing_version}
        if kv_cache != "model":
            versions |= {"kv_cache": PARTS["kv_cache"]}
    return Environment(
        stack=stack,
        lock=digest(
            {package: site.version(package, stack) for package in packages} | _gpu_software(machine, site, stack)
        ),
        hardware=machine.hardware,
        versions=versions,
        method_version=method.ref.version if job.models else 0,
        repetition=repetition,
    )


def _gpu_software(machine: Machine, site: Site, stack: str) -> dict[str, str | None]:
    """The driver and the installed packages with kernels; nothing on a CPU."""
    if machine.device == "cpu":
        return {}
    kernels = {package: site.version(package, stack) for package in KERNEL_PACKAGES}
    return {"NVIDIA driver": machine.driver, **{name: found for name, found in kernels.items() if found is not None}}


def _packages(method: MethodChoice, job: Job, stack: str) -> tuple[str, ...]:
    """The packages that the method needs to quantize, or to read its result."""
    if stack != MAIN:
        return method.method.packages
    own = method.method.packages if job.quantizes else registry.readers(method.method)
    return (*own, *published.readers(job.models[-1]))  # the published checkpoint, if there is one
