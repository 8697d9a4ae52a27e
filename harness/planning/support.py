"""Why this model cannot use this method here, determined before anything is loaded."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness import plugins as registry
from harness.core.engine import Engine, PlannedLoad, refuses_nothing
from harness.core.format import GGUF_FORMAT, Codes
from harness.core.job import Conditions, VariantJob
from harness.core.method import Needs
from harness.core.model import MAIN_ENGINE, Attention
from harness.core.site import MAIN, Machine, Site
from harness.models import bitsandbytes, published
from harness.models.compiled import compiled_by, uncompiled
from harness.models.headers import read_config
from harness.models.memory import DTYPE_BITS
from harness.models.scope import (
    LEAST_COVERAGE,
    divided_stack,
    experts_module,
    holds_experts,
    linears,
    matching,
    shape_of,
    stack_of,
)
from harness.models.sources import SourceModel
from harness.planning.expand import EngineChoice, MethodChoice
from harness.recipe.sweep import Scope

SHAPE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
"""The configuration keys that a quantized checkpoint shares with its source model."""


@dataclass(frozen=True)
class StackNotReady:
    """A stack without which a run is unsupported; ``sentence`` says what is wrong with it."""

    stack: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


Reason = str | StackNotReady
"""Why a run is unsupported: a sentence, or a type that makes the sentence, for what code must recognize."""


@dataclass(frozen=True)
class Combination:
    """A method of a model on an engine, on a site's machine, with the recipe's scope."""

    source: SourceModel
    method: MethodChoice
    engine: EngineChoice
    site: Site
    machine: Machine
    scope: Scope

    @property
    def runtime(self) -> Engine[Any]:
        return self.engine.engine

    @property
    def checkpoint(self) -> SourceModel:
        """What is loaded if nothing is quantized first."""
        return self.method.checkpoint or self.source


def unsupported_reason(wanted: Combination) -> Reason | None:
    """The first reason found, with what to do about it; None if there is no known reason."""
    source, method, machine, site = wanted.source, wanted.method, wanted.machine, wanted.site
    if wanted.runtime.remote:  # it is served already
        return None
    return (
        source.degrid_obstacle
        or _already_quantized(wanted)
        or _other_model(source, method)
        or _device(method.method.needs(method.params), machine)
        or _dtype(source, method, machine)
        or _untokenized(source, method)
        or _lacking(method, site)
        or _uncompiled(wanted)
        or _multimodal(source, method)
        or _experts(source, method, wanted.scope.skip)
        or _single_experts(source, method, wanted.scope.skip)
        or _shapes(source, method, machine, wanted.scope.skip)
        or _stored_shapes(wanted)
    )


def unsupported_job_reason(job: VariantJob, runtime: Engine[Any], site: Site) -> Reason | None:
    """Why an engine cannot do this job: a missing capability, key-value cache or decode mode; None if it can."""
    lacking = [name for name in job.uses if name not in runtime.offers()]
    if lacking:
        offered = ", ".join(sorted(runtime.offers()))
        return f"a {job.kind} run needs the capability {' and '.join(lacking)}; {runtime.name} has only {offered}"
    if job.uses_one_of and not runtime.offers(job.conditions.residency) & set(job.uses_one_of):
        named = " or ".join(job.uses_one_of)
        streamed = " of a streamed model" if job.conditions.residency == "streamed" else ""
        return f"answers that are written need the capability {named}{streamed}, which {runtime.name} lacks"
    for stack in job.stacks:
        if (reason := site.obstacle(stack)) is not None:
            sentence = f"a {job.kind} run uses a program of another stack than its engine's: {reason}"
            return StackNotReady(stack, sentence)
    kv_cache, mode = job.variant.kv_cache, job.decode_mode
    if kv_cache not in runtime.caches:
        return f"{runtime.name} keeps no {kv_cache} key-value cache, but {', '.join(runtime.caches)}"
    for package in runtime.caches[kv_cache]:
        if site.version(package, runtime.stack) is None:
            return f"kv_cache {kv_cache} needs {package}, which is not installed; pip install 'qharness[all]'"
    spread = job.conditions.gpus if runtime.name == MAIN_ENGINE else 1
    if spread > 1 and registry.method(job.variant.method.name).read is not None:
        return (
            f"its own library loads it, onto one GPU: devices: {spread} spreads what transformers loads; leave it out"
        )
    if "decodes" not in job.uses:
        return None
    if spread > 1 and mode != "eager":
        return f"decode_mode {mode} is one graph on one GPU, and devices: {spread} spreads the model; use eager"
    if mode not in runtime.decode_modes:
        advice = runtime.decode_advice or f"it can in {', '.join(runtime.decode_modes)}"
        return f"{runtime.name} cannot decode in decode_mode {mode}; {advice}"
    caches = runtime.decode_modes[mode]
    if kv_cache not in caches:
        return f"{runtime.name} decodes in decode_mode {mode} only with kv_cache {', '.join(caches)}"
    return None


def too_large(weight_bytes: int | None, conditions: Conditions, runtime: Engine[Any], machine: Machine) -> str | None:
    """Why a model does not fit a run's GPUs, by the estimated size of its weights alone; None if they may fit.

    What a batch or a long text needs beside them is left to the run, which ends by itself where memory is short. An
    engine that does not load through torch may keep a part in the host's memory, and nothing is refused on a CPU. The
    main engine is judged by ``residency.place``.
    """
    size = machine.memory_bytes * conditions.gpus
    if machine.device == "cpu" or runtime.counted_by != "torch" or not size or weight_bytes is None:
        return None
    if weight_bytes <= size:
        return None
    have = "the GPU has" if conditions.gpus == 1 else f"{conditions.gpus} GPUs have"
    return (
        f"its weights take {weight_bytes / 2**30:.1f} GiB and {have} {size / 2**30:.1f} GiB: use fewer bits, or more "
        f"GPUs by {runtime.name}'s own parameters"
    )


def unsupported_engine_reason(runtime: Engine[Any], site: Site) -> Reason | None:
    """Why an engine cannot measure anything: its stack is not created or it lacks libraries; None if it can."""
    if runtime.name == MAIN_ENGINE:  # the harness itself depends on its libraries
        return None
    return _missing_from(runtime.stack, runtime.packages, site)


def refusal(wanted: Combination, attention: Attention | None, job: VariantJob | None = None) -> str | None:
    """Why an engine refuses to load this variant here, for any job or for this one; None if it may load it.

    Layers with parameters of their own are each put to the engine: it must read them all.
    """
    source, method, engine = wanted.source, wanted.method, wanted.engine
    if engine.engine.refuses is refuses_nothing:
        return None
    for params in _parameters(method, wanted.scope):
        planned = PlannedLoad(
            machine=wanted.machine,
            dtype=method.method.run_dtype(params, source.ref.dtype),
            codes=_codes(wanted, params),
            kv_cache=job.variant.kv_cache if job else "model",
            attention=attention,
            matrices=in_scope(source, wanted.scope.skip),
            tokens=job.longest_tokens if job else 0,
            batch=job.largest_batch if job else 0,
            serves=job is not None and "serves" in job.uses,
        )
        if reason := engine.engine.refuses(planned, engine.params):
            return reason
    return None


def _parameters(method: MethodChoice, scope: Scope) -> Iterator[Any]:
    """The method's parameters, and those of every set of layers that the recipe gives their own."""
    yield method.params
    if method.method.overrides:
        for changed in scope.overrides.values():
            own = {name: value for name, value in changed.items() if name in type(method.params).model_fields}
            yield type(method.params).model_validate({**method.params.model_dump(), **own})


def _codes(wanted: Combination, params: Any) -> Codes | None:
    """How the checkpoint to load stores its weights; None if they are not quantized."""
    if wanted.checkpoint.quantization is None:
        return wanted.method.method.stored(params)
    return published.codes(published.quantization_config(Path(wanted.checkpoint.ref.path)))


def unpacking_note(wanted: Combination) -> str | None:
    """That the engine unpacks a published checkpoint while loading it here, and why; None if it is not known to."""
    loaded = wanted.checkpoint
    if wanted.runtime.name != MAIN_ENGINE or loaded.quantization is None or not loaded.ref.path:
        return None
    return published.unpacking(published.quantization_config(Path(loaded.ref.path)), wanted.machine, wanted.site)


def _already_quantized(wanted: Combination) -> str | None:
    """Why a checkpoint that was published quantized cannot be measured, or quantized again; None if it can."""
    again = wanted.method.checkpoint is None and wanted.method.method.stage != "none"
    if again and wanted.source.quantization is not None:
        return (
            f"the model is already quantized ({wanted.source.quantization}); measure it with 'none', "
            "or name it as 'checkpoint' of the model it was made from"
        )
    return _unreadable(wanted)


def _other_model(source: SourceModel, method: MethodChoice) -> str | None:
    """How a published checkpoint differs from its model, if both configurations are available; else None."""
    refs = [source.ref, method.checkpoint.ref if method.checkpoint else source.ref]
    if any(ref.kind not in ("directory", "hub") or not ref.path for ref in refs):
        return None
    ours, theirs = (read_config(Path(ref.path)) for ref in refs)
    differing = [key for key in SHAPE_KEYS if ours.get(key) != theirs.get(key)]
    if not differing:
        return None
    key = differing[0]
    return f"was not made from this model: its {key} is {theirs.get(key)!r}, not {ours.get(key)!r}"


def _untokenized(source: SourceModel, method: MethodChoice) -> str | None:
    if source.ref.kind == "synthetic" and method.calibrated:
        return "random weights have no tokenizer, so calibration is not possible"
    return None


def _unreadable(wanted: Combination) -> str | None:
    """What transformers lacks to read a quantized checkpoint; engines of other libraries refuse what they cannot."""
    loaded, runtime = wanted.checkpoint, wanted.runtime
    method = loaded.quantization
    if method is None or not loaded.matrices:  # a float checkpoint, or one not fetched yet
        return None
    if runtime.stack != MAIN:
        return None
    if method not in published.READERS:
        return f"{loaded.ref.label}: unknown quant_method {method!r}; known: {', '.join(published.READERS)}"
    reason = published.missing(method, wanted.site)
    if reason is not None or runtime.name != MAIN_ENGINE:
        return reason
    return published.missing_kernels(published.quantization_config(Path(loaded.ref.path)), wanted.machine, wanted.site)


def _lacking(chosen: MethodChoice, site: Site) -> Reason | None:
    """What is missing in the stack that quantizes and in the one that measures; None if nothing is."""
    method = chosen.method
    if method.stack == MAIN:
        return registry.missing(method, site)
    return _missing_from(method.stack, method.packages, site) or registry.missing(method, site)


def _missing_from(stack: str, packages: Sequence[str], site: Site) -> Reason | None:
    """Why a stack cannot run anything, or which of the needed packages it lacks; None if it is ready."""
    reason = site.obstacle(stack)
    if reason is not None:
        return StackNotReady(stack, reason)
    absent = [package for package in packages if site.version(package, stack) is None]
    if not absent:
        return None
    names = ", ".join(absent)
    if stack == MAIN:
        return f"{names} is not installed; pip install {' '.join(absent)}"
    return f"{names} is not installed in stack {stack!r}; see qharness stack check {stack}"


def _device(needs: Needs, machine: Machine) -> str | None:
    if needs.device is not None and needs.device != machine.device:
        return f"needs {'an NVIDIA GPU' if needs.device == 'cuda' else 'a CPU'}; this sweep runs on {machine.device}"
    if needs.capability and machine.capability and machine.capability < needs.capability:
        return f"needs compute capability {_version(needs.capability)}; this GPU has {_version(machine.capability)}"
    return None


def _dtype(source: SourceModel, method: MethodChoice, machine: Machine) -> str | None:
    """Why the method's GPU kernels cannot run the model in its dtype; None if they can, or it is not known yet."""
    dtypes = method.method.needs(method.params).gpu_dtypes
    dtype = method.method.run_dtype(method.params, source.ref.dtype)
    if machine.device != "cuda" or not dtypes or dtype not in DTYPE_BITS or dtype in dtypes:
        return None
    return (
        f"{method.ref.name} runs in {' or '.join(dtypes)} on an NVIDIA GPU, not in {dtype}; "
        f"give the model dtype: {dtypes[0]}"
    )


def _uncompiled(wanted: Combination) -> str | None:
    """What is absent to compile the CUDA kernels that the variant runs on; None if nothing is."""
    method, machine = wanted.method, wanted.machine
    codes = _codes(wanted, method.params)
    if machine.device != "cuda" or machine.capability is None or not machine.absent_compilers or codes is None:
        return None
    dtype = method.method.run_dtype(method.params, wanted.source.ref.dtype)
    package = compiled_by(codes, dtype, machine.capability)
    if package is None or wanted.site.version(package) is None:
        return None
    if wanted.runtime.stack != MAIN and package not in method.method.packages:  # the engine has kernels of its own
        return None
    return uncompiled(package, machine.absent_compilers)


def _multimodal(source: SourceModel, method: MethodChoice) -> str | None:
    known = method.method.multimodal
    if not source.multimodal or known is None or source.model_type in known:
        return None
    takes = f"text models and {' and '.join(sorted(known))}" if known else "text models alone"
    return (
        f"{method.ref.name} is known to take {takes}, and this {source.model_type} model has parts that read images or "
        "sound; choose a method that leaves them as they are"
    )


def _experts(source: SourceModel, method: MethodChoice, skip: tuple[str, ...]) -> str | None:
    """Why a mixture's experts prevent the method: without them, coverage would be below the required minimum."""
    if not method.method.leaves_experts(source.model_type):
        return None
    scope = in_scope(source, skip)
    left = sum(math.prod(shape) for name, shape in scope.items() if holds_experts(name, len(shape)))
    share = left / max(sum(map(math.prod, scope.values())), 1)
    if share <= 1 - LEAST_COVERAGE:
        return None
    because = f": {method.method.leaves_experts_because}" if method.method.leaves_experts_because else ""
    return (
        f"{method.ref.name} is not known to quantize the experts of a {source.model_type} model "
        f"({share:.0%} of the scope) and to reload them{because}; "
        "skip them with scope: {skip: ['*.experts*']}, or choose a method that can"
    )


def _single_experts(source: SourceModel, method: MethodChoice, skip: tuple[str, ...]) -> str | None:
    """Why single experts cannot be skipped where the result is a GGUF file."""
    if method.method.writes != GGUF_FORMAT or not skip:
        return None
    skipped: dict[str, set[bool]] = defaultdict(set)
    for name, shape in source.matrices.items():
        for module in linears(name, shape):
            stack, number = stack_of(module)
            if number is not None:
                skipped[stack].add(bool(matching(module, skip) or matching(name.removesuffix(".weight"), skip)))
    return divided_stack(method.ref.name, skipped)


def _shapes(source: SourceModel, method: MethodChoice, machine: Machine, skip: tuple[str, ...]) -> str | None:
    needs, shapes = method.method.needs(method.params), in_scope(source, skip).values()
    reason = misfit(method.ref.name, needs, shapes, source.model_type)
    if reason is not None:
        return reason
    if machine.device == "cpu":
        return _misfit_on_cpu((shape[-1] for shape in shapes), needs.cpu_divisor)
    widths = _indivisible((width for shape in shapes for width in shape[-2:]), needs.gpu_divisor)
    return f"{needs.gpu_divisor} does not divide the widths {widths} of this model, as a GPU needs" if widths else None


def _stored_shapes(wanted: Combination) -> str | None:
    """Widths for which a checkpoint that was published quantized would compute wrongly here; or None."""
    loaded = wanted.checkpoint
    here = wanted.machine.device == "cpu" and wanted.runtime.name == MAIN_ENGINE
    if loaded.quantization != bitsandbytes.QUANT_METHOD or not here:
        return None
    return _misfit_on_cpu(bitsandbytes.stored_widths(Path(loaded.ref.path)), bitsandbytes.CPU_DIVISOR)


def _misfit_on_cpu(widths: Iterable[int], divisor: int | None) -> str | None:
    found = _indivisible(widths, divisor)
    return f"{divisor} does not divide the input widths {found}, as a CPU needs" if found else None


@lru_cache(maxsize=16)
def in_scope(source: SourceModel, skip: tuple[str, ...]) -> Mapping[str, tuple[int, ...]]:
    """The shapes (outputs and inputs last) of the decoder's matrices that a recipe does not skip, by name."""
    shapes = {name: shape_of(name, shape, source.model_type) for name, shape in source.matrices.items()}
    if not skip:
        return shapes
    return {
        name: shape
        for name, shape in shapes.items()
        if not matching(experts_module(name).removesuffix(".weight"), skip)
        and not all(matching(module, skip) for module in linears(name, shape))
    }


def misfit(method: str, needs: Needs, shapes: Collection[tuple[int, ...]], model_type: str | None) -> str | None:
    """Widths that the method's groups or tiles do not divide, or an architecture unknown to its library; or None."""
    if needs.model_types and model_type and model_type not in needs.model_types:
        known = ", ".join(sorted(needs.model_types))
        return f"{method} with these parameters does not know {model_type} models; known: {known}"
    inputs = _indivisible((shape[-1] for shape in shapes), needs.input_divisor)
    if inputs:
        return f"group_size {needs.input_divisor} does not divide the input widths {inputs} of this model"
    outputs = _indivisible((shape[-2] for shape in shapes), needs.output_divisor)
    return f"{needs.output_divisor} does not divide the output widths {outputs} of this model" if outputs else None


def _indivisible(widths: Iterable[int], divisor: int | None) -> str:
    return ", ".join(map(str, sorted({width for width in widths if divisor and width % divisor})))


def _version(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
