"""What is imported for a run before it loads a model, in steps; runs with equal steps share what these import.

Each step takes place in a process from which runs are forked (``warm.py``), so it must leave that process as it was but
for its modules. Whether it did is looked up there, not assumed. A run that was not forked imports the same.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any, Literal

from harness.core.engine import Engine
from harness.core.job import VariantJob
from harness.core.method import Setting
from harness.core.model import MAIN_ENGINE
from harness.core.run import RunSpec
from harness.execution import jobs
from harness.execution.context import checkpoint, enabled_method, packages
from harness.execution.import_guard import UNUSED, skip_unused_imports
from harness.plugins import engine, method, readers
from harness.storage.cache import Cache

StepName = Literal["engine", "model", "method"]
Step = tuple[StepName, tuple[str, ...]]
"""A step's name, and all that what it imports depends on."""


def steps(spec: RunSpec) -> tuple[Step, ...]:
    """The steps of a run, in their order."""
    if not spec.job.models:
        return ()
    optional = sorted(set(UNUSED.values()) & set(packages(spec)))
    first: Step = ("engine", (_runtime(spec).name, *optional))
    if not isinstance(spec.job, VariantJob):
        return (first,)
    chosen = method(spec.method.name)
    libraries = tuple(sorted({*chosen.packages, *readers(chosen)}))
    of_model: Step = ("model", tuple(each.id for each in spec.job.models))
    return first, of_model, *((("method", libraries),) if libraries else ())


def take(step: StepName, spec: RunSpec, cache: Cache) -> None:
    """Imports what this step of a run is about; raises what the libraries raise."""
    if step == "engine":
        skip_unused_imports(packages(spec))
        for job in pkgutil.iter_modules(jobs.__path__):
            import_module(f"{jobs.__name__}.{job.name}")
        _runtime(spec).imports()
    elif step == "model":
        _runtime(spec).import_model(checkpoint(spec, cache))
    else:
        chosen = enabled_method(spec)
        if chosen.load_config is not None and not spec.job.quantizes:
            params = chosen.params.model_validate(dict(spec.method.params))
            chosen.load_config(params, Setting(spec.model.dtype, spec.device))


def _runtime(spec: RunSpec) -> Engine[Any]:
    """The engine that loads the run's model: methods quantize transformers models."""
    measured = isinstance(spec.job, VariantJob) and not spec.job.quantizes
    return engine(spec.engine if measured else MAIN_ENGINE)
