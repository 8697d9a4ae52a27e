"""The context of a run inside the worker: its spec, its phases, and the findings that its job collects."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from harness.core.capability import Endpoint, Factored, LoadedModel, Pooled, Streamed
from harness.core.engine import (
    FILLED_SHARE,
    STATES_SHARE,
    STREAMED_PASSES,
    Engine,
    EngineParams,
    LoadRequest,
    Streaming,
)
from harness.core.format import TRANSFORMERS_FORMAT, source_format
from harness.core.identity import Scalar
from harness.core.job import VariantJob
from harness.core.json_values import not_finite
from harness.core.label import Argument, Fact, FactCode, Label, LabelCode
from harness.core.method import Method, Setting
from harness.core.model import MAIN_ENGINE, ModelRef
from harness.core.record import Measurement, Moment, Phase
from harness.core.run import RunSpec
from harness.core.site import KERNEL_PACKAGES, MAIN
from harness.errors import HarnessError, InvalidRunError, UnsupportedError
from harness.execution.room import free_bytes
from harness.host.allocator import private_bytes
from harness.host.machine import state, unreported_state
from harness.metrics.memory import DeviceBaseline, PeakMemory, kv_cache_pool
from harness.models import published
from harness.models.headers import read_directory
from harness.models.scope import Modules, modules
from harness.plugins import engine, method, metric, readers
from harness.storage.cache import Cache

M = TypeVar("M", bound=LoadedModel)


@dataclass(frozen=True)
class Loaded:
    """A loaded variant, the workloads that this process has asked of it, and what the GPU held before it was loaded."""

    model: LoadedModel
    workloads: tuple[str, ...] = ()
    baseline: DeviceBaseline | None = None


@dataclass(frozen=True)
class Later:
    """What a job measures once its artifact is published, given the artifact's folder.

    If the run is ended meanwhile, it has succeeded nevertheless: artifact and record stay, with the fact ``missing``.
    """

    missing: Fact
    measure: Callable[[Path], None]


class Context:
    """Collects a run's findings. ``announce`` reports each phase to the parent when it begins.

    ``loaded`` is the spec's variant if this process has loaded it for an earlier run, and then what ``load`` loaded.
    """

    def __init__(
        self,
        spec: RunSpec,
        cache: Cache,
        announce: Callable[[str], None],
        loaded: Loaded | None = None,
    ) -> None:
        self.spec = spec
        self.cache = cache
        self.loaded = loaded
        self.measurements: list[Measurement] = []
        self.labels: list[Label] = []
        self.facts: list[Fact] = []
        self.phases: list[Phase] = []
        self.moments: list[Moment] = []
        self.current = "start"
        self._announce = announce
        self._memory = _peak_memory(spec, loaded) if spec.job.conditions.memory else None

    @contextmanager
    def phase(self, name: str, **where: Scalar) -> Iterator[None]:
        """A named, timed part of the run with its memory measured; ``where`` distinguishes phases with one name."""
        self.current = name
        self._announce(name)
        began = time.perf_counter()
        with self._memory.phase(name, **where) if self._memory else nullcontext():
            yield
            self._sync()
        self.phases.append(Phase(name, time.perf_counter() - began))

    def verify_artifacts(self) -> None:
        """Hashes everything that the run needs from the cache, in a phase before all others.

        Its memory is not measured, because it is not the variant's. Raises DamagedError, after removing what is
        damaged.
        """
        self.current = "verify"
        self._announce(self.current)
        began = time.perf_counter()
        self.cache.verify(self.spec)
        self.phases.append(Phase(self.current, time.perf_counter() - began))

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Adds measurements. Raises InvalidRunError for NaN or infinity, which no record may hold."""
        for measurement in measurements:
            if not measurement.values or not_finite(measurement.values) is not None:
                raise InvalidRunError(f"{measurement.metric} is not finite, or holds no value")
            self.measurements.append(measurement)

    def label(self, code: LabelCode, /, **arguments: Argument) -> None:
        """Adds a warning that every table will carry."""
        self.labels.append(Label(code, arguments))

    def fact(self, code: FactCode, /, **arguments: Argument) -> None:
        """Adds a finding; it replaces one with the same name."""
        self.keep(Fact(code, arguments))

    def keep(self, fact: Fact) -> None:
        self.facts = [*(each for each in self.facts if each.name != fact.name), fact]

    def note(self, name: str, value: Scalar) -> None:
        """Adds a method's own note as a fact."""
        self.fact("noted", name=name, value=value)

    def moment(self, name: str) -> None:
        """Records the machine's changing state as it is now, and at first what a GPU does not report of it."""
        self.moments.append(Moment(name, state()))
        unreported = unreported_state() if len(self.moments) == 1 and self.spec.device.startswith("cuda") else {}
        if unreported:
            values = tuple(f"{value}: {reason}" for value, reason in unreported.items())
            self.fact("gpu_state_not_reported", values=values)

    def findings(self) -> tuple[Measurement, ...]:
        """All measurements, including the instruments' figures."""
        return (*self.measurements, *(self._memory.finish() if self._memory else ()))

    def _sync(self) -> None:
        """Waits for the device: a phase ends when the device has finished it."""
        if self.spec.device.startswith("cuda"):
            import torch

            for index in range(_own_gpus(self.spec)):
                torch.cuda.synchronize(index)

    def source(self) -> Path:
        """The unquantized checkpoint that the run reads."""
        return source(self.spec, self.cache)

    def checkpoint(self) -> Path:
        """The checkpoint that the variant is loaded from."""
        return checkpoint(self.spec, self.cache)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the unquantized checkpoint's tensors, by name."""
        return read_directory(self.source()).shapes

    def modules(self) -> Modules:
        """What the recipe's scope means for this model. Raises UnsupportedError for a pattern that matches nothing."""
        every = modules(self.shapes)
        for pattern in (*self.spec.variant.skip, *self.spec.variant.overrides):
            if not any(every.matching(module, [pattern]) for module in every.scope):
                raise UnsupportedError(f"scope: {pattern!r} matches no module of the decoder")
        return modules(self.shapes, self.spec.variant.skip)

    def overrides(self) -> dict[str, dict[str, Scalar]]:
        """The overridden parameters by module, limited to those that the method has. Later patterns win."""
        found: dict[str, dict[str, Scalar]] = {}
        modules = self.modules()
        for module in modules.scope:
            for pattern in modules.matching(module, self.spec.variant.overrides):
                own = {
                    key: value for key, value in self.spec.variant.overrides[pattern].items() if self.overridable(key)
                }
                if own:
                    found[module] = {**found.get(module, {}), **own}
        return found

    def overridable(self, key: str) -> bool:
        """Whether the method supports a separate value of this parameter for single modules."""
        chosen = method(self.spec.method.name)
        return chosen.overrides and key in chosen.params.model_fields

    def load(self, needed: type[M]) -> M:
        """The spec's variant: what this process has loaded for an earlier run, or loaded by its engine now.

        Raises UnsupportedError if the engine's models lack the ``needed`` capability.
        """
        runtime = engine(self.spec.engine)
        if self.loaded is None:
            self.loaded = Loaded(self._load(runtime), baseline=self._memory.baseline if self._memory else None)
        else:
            self.fact("process_shared", earlier=self.loaded.workloads)
        model = checked(runtime, self.loaded.model, needed)
        self._label_remote()
        self.loaded = replace(self.loaded, workloads=(*self.loaded.workloads, self.spec.job.workload))
        if isinstance(model, Pooled) and self.spec.job.conditions.memory:  # a part of every peak from here on
            self.add([kv_cache_pool(model.cache_pool())])
        if model.cache_description is not None:
            self.fact("key_value_cache", kind=model.cache_description)
        return model

    def _load(self, runtime: Engine[Any]) -> LoadedModel:
        """Importing libraries and loading are separate phases."""
        with self.phase("import"):
            runtime.imports()
            runtime.import_model(self.checkpoint())
            chosen = self.method()
            request = self._request(chosen.run_dtype(self.params(), self.spec.model.dtype))
        with self.phase("quantize_on_load" if self.spec.quantizes_on_load else "load"):
            model = runtime.load(request, self._engine_params())
            if self.spec.quantizes_on_load and isinstance(model, Streamed):
                model.load_each()
                self.label("quantized_in_parts")
                if (reason := chosen.unsaved(self.params(), self.spec.device)) is not None:
                    self.fact("quantized_each_pass", reason=reason)
        if isinstance(model, Factored):
            with self.phase("probe"):
                model.probe_head()
        return model

    @contextmanager
    def serve(self, folder: Path) -> Iterator[Endpoint]:
        """A server of the engine's own for the spec's variant, which keeps its log in ``folder``.

        Starting it is a phase. It is outside of this process, so that no memory of a phase is the model's. Raises
        UnsupportedError if the engine has no server, or if the server cannot load the variant.
        """
        runtime = engine(self.spec.engine)
        if runtime.serve is None:
            raise UnsupportedError(f"this run needs a server, which the engine {runtime.name} does not have")
        self._label_remote()
        request = self._request(self.method().run_dtype(self.params(), self.spec.model.dtype))
        with ExitStack() as running:
            with self.phase("start server"):
                endpoint = running.enter_context(runtime.serve(request, self._engine_params(), folder))
            yield endpoint

    def load_as(self, dtype: str, needed: type[M]) -> M:
        """The variant, loaded again in another dtype."""
        runtime = engine(self.spec.engine)
        with self.phase(f"load in {dtype}"):
            model = checked(runtime, runtime.load(self._request(dtype), self._engine_params()), needed)
            if isinstance(model, Factored):
                model.probe_head()
        return model

    def _request(self, dtype: str) -> LoadRequest:
        """How the engine should load the variant."""
        spec, chosen = self.spec, method(self.spec.method.name)
        setting = Setting(dtype, spec.device, self.modules().untouched)
        on_load = chosen.load_config if spec.quantizes_on_load else None
        return LoadRequest(
            self.checkpoint(),
            dtype,
            spec.device,
            spec.job.conditions.attention,
            on_load(self.params(), setting) if on_load else None,
            (spec.method.published or spec.model).trust_remote_code,  # an artifact is trusted like its model
            spec.kv_cache,
            chosen.read,
            spec.job.conditions.gpus,
            setting.untouched,
            self.streaming(),
            spec.method.endpoint,
        )

    def _label_remote(self) -> None:
        if (endpoint := self.spec.method.endpoint) is not None:
            self.label("remote", model=endpoint.model)

    def streaming(self, passes: int = STREAMED_PASSES) -> Streaming | None:
        """How the run reads its model part by part, about so many times; None if it loads it whole."""
        spec = self.spec
        if spec.job.conditions.residency == "resident":
            return None
        free, limit = self.free_bytes(), spec.limits.memory_bytes
        fill = None if free is None else int(FILLED_SHARE * free)
        if fill is not None and limit is not None:  # which counts what this process has already
            fill = min(fill, int(FILLED_SHARE * limit) - private_bytes())
        on_gpu = spec.device.startswith("cuda")
        return Streaming(int(STATES_SHARE * (free or 0)), None if on_gpu else fill, spec.limits.time_s, passes)

    def free_bytes(self) -> int | None:
        """The memory of its devices that the run may still take; None if it is not known."""
        spec = self.spec
        return free_bytes(spec.device, spec.job.conditions.gpus, spec.limits.memory_bytes)

    def method(self) -> Method[Any]:
        """The spec's method, with its library enabled, unless another library's engine reads the result."""
        return enabled_method(self.spec)

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages, besides the harness's own, whose versions affect this run's figures."""
        return packages(self.spec)

    def params(self) -> Any:
        """The method's parameters as its own type."""
        return method(self.spec.method.name).params.model_validate(self.spec.method.given)

    def _engine_params(self) -> EngineParams:
        """The engine's own parameters as its own type."""
        own: EngineParams = engine(self.spec.engine).params.model_validate(dict(self.spec.variant.engine_params))
        return own


def source(spec: RunSpec, cache: Cache) -> Path:
    """The unquantized checkpoint that a run reads."""
    return cache.needed(spec, "prepare") if spec.model.needs_preparing else _fetched(spec.model)


def checkpoint(spec: RunSpec, cache: Cache) -> Path:
    """The checkpoint that a run loads its variant from."""
    if spec.method.published is not None:
        return _fetched(spec.method.published)
    for kind in ("quantize", "convert"):
        if kind in spec.needs:
            return cache.needed(spec, kind)
    written = source_format(spec.model)
    if written != TRANSFORMERS_FORMAT and written in engine(spec.engine).reads:
        return Path(spec.model.path)
    return source(spec, cache)


def enabled_method(spec: RunSpec) -> Method[Any]:
    """A run's method, with its library enabled, unless another library's engine reads the result."""
    chosen = method(spec.method.name)
    needed = spec.job.quantizes or engine(spec.engine).stack == MAIN
    if chosen.enable is not None and needed:
        chosen.enable()
    return chosen


def packages(spec: RunSpec) -> tuple[str, ...]:
    """The packages, besides the harness's own, whose versions affect a run's figures."""
    job = spec.job
    on_gpu = KERNEL_PACKAGES if spec.device.startswith("cuda") else ()
    if not job.models:
        return (*job.packages, *on_gpu)
    runtime = engine(spec.engine)
    own = (*job.packages, *runtime.packages, *runtime.caches[spec.kv_cache])
    if isinstance(job, VariantJob):
        chosen = method(job.variant.method.name)
        own = (*chosen.packages, *readers(chosen), *own)
    return (*own, *published.readers(job.models[-1]), *on_gpu)


def checked(runtime: Engine[Any], model: LoadedModel, needed: type[M]) -> M:
    """The loaded model, checked for the ``needed`` capability.

    Raises HarnessError if it lacks what its engine declares, and UnsupportedError if it does not offer ``needed``.
    """
    unmet = runtime.unmet(model)
    if unmet:
        raise HarnessError(
            f"the engine {runtime.name} declares {', '.join(unmet)}, but its {type(model).__name__} does not implement "
            "it; report this to whoever maintains the engine"
        )
    if not isinstance(model, needed):
        raise UnsupportedError(f"this run needs {needed.__name__}, which the engine {runtime.name} does not offer")
    return model


def _peak_memory(spec: RunSpec, loaded: Loaded | None) -> PeakMemory:
    """The memory instrument. The baseline of a process is taken once, before its first run loads the model."""
    gpus = _own_gpus(spec)
    counted_by = engine(spec.engine).counted_by if gpus == spec.job.conditions.gpus else "driver"
    baseline = loaded.baseline if loaded else None
    instrument: PeakMemory = metric("memory").make(spec.device, counted_by, baseline, gpus)
    return instrument


def _own_gpus(spec: RunSpec) -> int:
    """How many GPUs this process computes on: other engines start a process for each of several."""
    return spec.job.conditions.gpus if spec.engine == MAIN_ENGINE else 1


def _fetched(model: ModelRef) -> Path:
    if not model.path:
        raise HarnessError(f"{model.id}: not fetched from the hub; run the recipe with 'qharness run'")
    return Path(model.path)
