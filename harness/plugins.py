"""Looks up methods, engines, metrics and figures by name, built-in or from plugins; imports them only on request.

A third party adds a method with an entry point in the group ``qharness.methods`` that names a Method, an engine with
one in ``qharness.engines``, a metric with one in ``qharness.metrics``, and figures with one in ``qharness.figures``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from harness.core.engine import Engine
from harness.core.method import Method
from harness.core.metric import Metric
from harness.core.site import Site
from harness.errors import UsageError, refuse_unknown

if TYPE_CHECKING:
    from harness.figures.figure import Figure

N = TypeVar("N", Method[Any], Engine[Any], Metric)

METHOD_GROUP = "qharness.methods"
ENGINE_GROUP = "qharness.engines"
METRIC_GROUP = "qharness.metrics"
FIGURE_GROUP = "qharness.figures"

_METHODS = {
    "none": "harness.methods.none:NONE",
    "checkpoint": "harness.methods.checkpoint:CHECKPOINT",
    "rtn": "harness.methods.rtn.rtn:RTN",
    "int8": "harness.methods.torchao.weight_only:INT8",
    "fp8": "harness.methods.torchao.weight_only:FP8",
    "torchao-int8-dynamic": "harness.methods.torchao.dynamic:INT8_DYNAMIC",
    "torchao-fp8-dynamic": "harness.methods.torchao.dynamic:FP8_DYNAMIC",
    "torchao-intx": "harness.methods.torchao.grouped:INTX",
    "torchao-int4": "harness.methods.torchao.grouped:INT4",
    "torchao-nvfp4": "harness.methods.torchao.microscaling:NVFP4",
    "torchao-mxfp8": "harness.methods.torchao.microscaling:MXFP8",
    "torchao-mxfp4": "harness.methods.torchao.microscaling:MXFP4",
    "quanto": "harness.methods.quanto.quanto:QUANTO",
    "hqq": "harness.methods.hqq.hqq:HQQ",
    "qat": "harness.methods.torchao.qat:QAT",
    "bnb-int8": "harness.methods.bitsandbytes.bitsandbytes:BNB_INT8",
    "bnb-nf4": "harness.methods.bitsandbytes.bitsandbytes:NF4",
    "bnb-fp4": "harness.methods.bitsandbytes.bitsandbytes:FP4",
    "autoround": "harness.methods.autoround.autoround:AUTOROUND",
    "autoround-fp8": "harness.methods.autoround.fp8:AUTOROUND_FP8",
    "modelopt": "harness.methods.modelopt.modelopt:MODELOPT",
    "inc-rtn": "harness.methods.inc.inc:INC_RTN",
    "inc-gptq": "harness.methods.inc.inc:INC_GPTQ",
    "inc-awq": "harness.methods.inc.inc:INC_AWQ",
    "quark": "harness.methods.quark.quark:QUARK",
    "gptq": "harness.methods.gptqmodel.gptq:GPTQ",
    "awq": "harness.methods.gptqmodel.awq:AWQ",
    "gptqmodel-gguf": "harness.methods.gptqmodel.gguf:GPTQMODEL_GGUF",
    "llmc-rtn": "harness.methods.llmcompressor.weight_only:RTN",
    "llmc-gptq": "harness.methods.llmcompressor.weight_only:GPTQ",
    "llmc-fp8": "harness.methods.llmcompressor.eight_bit:FP8",
    "llmc-int8": "harness.methods.llmcompressor.eight_bit:INT8",
    "llmc-w4a8": "harness.methods.llmcompressor.w4a8:W4A8",
    "llmc-nvfp4": "harness.methods.llmcompressor.microscaling:NVFP4",
    "llmc-mxfp4": "harness.methods.llmcompressor.microscaling:MXFP4",
    "llmc-mxfp8": "harness.methods.llmcompressor.microscaling:MXFP8",
    "llmc-awq": "harness.methods.llmcompressor.awq:AWQ",
    "autoawq": "harness.methods.autoawq.autoawq:AUTOAWQ",
    "autogptq": "harness.methods.autogptq.autogptq:AUTOGPTQ",
    "gguf": "harness.methods.llamacpp.gguf:GGUF",
    "qlora": "harness.methods.peft.qlora:QLORA",
    "served": "harness.methods.served:SERVED",
    "vllm-online": "harness.methods.vllm.online:VLLM_ONLINE",
}
ALIASES: Mapping[str, str] = MappingProxyType({"ptq": "rtn"})
_ENGINES = {
    "transformers": "harness.engines.transformers.engine:TRANSFORMERS",
    "llamacpp": "harness.engines.llamacpp.engine:LLAMACPP",
    "vllm": "harness.engines.vllm.engine:VLLM",
    "endpoint": "harness.engines.endpoint.engine:ENDPOINT",
}
_METRICS = {
    "perplexity": "harness.metrics.perplexity:PERPLEXITY",
    "divergence": "harness.metrics.divergence:DIVERGENCE",
    "memory": "harness.metrics.memory:MEMORY",
    "throughput": "harness.metrics.throughput:THROUGHPUT",
    "energy": "harness.metrics.energy:ENERGY",
    "tasks": "harness.metrics.tasks:TASKS",
    "serving": "harness.metrics.serving:SERVING",
}

_FIGURES = (
    "harness.figures.quality:FIGURES",
    "harness.figures.divergence:FIGURES",
    "harness.figures.tasks:FIGURES",
    "harness.figures.answers:FIGURES",
    "harness.figures.tool_calls:FIGURES",
    "harness.figures.quality:STANDING",
    "harness.figures.divergence:BREAKDOWNS",
    "harness.figures.experts:FIGURES",
    "harness.figures.size:FIGURES",
    "harness.figures.speed:FIGURES",
    "harness.figures.serving:FIGURES",
    "harness.figures.bound:FIGURES",
    "harness.figures.energy:FIGURES",
    "harness.figures.price:FIGURES",
    "harness.figures.memory:FIGURES",
    "harness.figures.quantizing:FIGURES",
)


def method_names() -> list[str]:
    """Every known method: built-in ones first, then those of installed plugins."""
    return [*_METHODS, *sorted(set(_plugins(METHOD_GROUP)) - set(_METHODS))]


def engine_names() -> list[str]:
    """Every known engine: built-in ones first, then those of installed plugins."""
    return [*_ENGINES, *sorted(set(_plugins(ENGINE_GROUP)) - set(_ENGINES))]


def metric_names() -> list[str]:
    """Every known metric: built-in ones first, then those of installed plugins."""
    return [*_METRICS, *plugin_metric_names()]


def plugin_metric_names() -> list[str]:
    """The plugin metrics that a recipe may name under ``measure``."""
    return sorted(set(_plugins(METRIC_GROUP)) - set(_METRICS))


def method(name: str) -> Method[Any]:
    """The method with this name or alias. Raises UsageError for an unknown or a broken one."""
    name = ALIASES.get(name, name)
    if name in _METHODS:
        return _object(_METHODS[name])  # type: ignore[no-any-return]
    plugins = _plugins(METHOD_GROUP)
    if name not in plugins:
        refuse_unknown("method", name, [*method_names(), *ALIASES])
    return _named(plugins[name], Method)


def engine(name: str) -> Engine[Any]:
    """The engine with this name. Raises UsageError for an unknown or a broken one."""
    if name in _ENGINES:
        return _object(_ENGINES[name])  # type: ignore[no-any-return]
    plugins = _plugins(ENGINE_GROUP)
    if name not in plugins:
        refuse_unknown("engine", name, engine_names())
    return _named(plugins[name], Engine)


def metric(name: str) -> Metric:
    """The metric with this name. Raises UsageError for an unknown or a broken one."""
    if name in _METRICS:
        return _object(_METRICS[name])  # type: ignore[no-any-return]
    plugins = _plugins(METRIC_GROUP)
    if name not in plugins:
        refuse_unknown("metric", name, metric_names())
    return _named(plugins[name], Metric)


@cache
def figures() -> Mapping[str, Figure[Any]]:
    """Every figure by name, in the order of the report's columns: built-in ones first, then the plugins'.

    An entry point in the group ``qharness.figures`` names one Figure or a tuple of them. Raises UsageError for a broken
    plugin and for a name that is already taken.
    """
    declared = [each for path in _FIGURES for each in _object(path)]
    found = {each.name: each for each in declared}
    assert len(found) == len(declared), "two figures have one name"
    for entry in sorted(entry_points(group=FIGURE_GROUP), key=lambda entry: entry.name):
        for each in _figures_of(entry):
            if each.name in found:
                raise UsageError(f"the plugin {_owner(entry)!r} declares a second figure {each.name!r}")
            found[each.name] = each
    return MappingProxyType(found)


@cache
def gates() -> Mapping[str, Figure[Any]]:
    """The figures that may be gated, by name, in the order of findings and series."""
    from harness.figures.gate import in_order

    return MappingProxyType(in_order(figures()))


@cache
def plugin_figures() -> bool:
    """Whether a plugin declares figures."""
    return bool(_plugins(FIGURE_GROUP))


def limit_options() -> dict[str, Figure[Any]]:
    """The figures that can have a limit, by keyword of ``harness.recommend``, in the order of its options."""
    limited = [each for each in figures().values() if each.ask and each.ask.limit]
    return {each.limit.keyword: each for each in sorted(limited, key=lambda each: each.limit.rank)}


def objectives(direction: str) -> dict[str, Figure[Any]]:
    """The figures that can be optimized in a ``direction`` (``lower`` or ``higher`` is better), by objective name."""
    named = [
        (each.ask.objective, each)
        for each in figures().values()
        if each.ask and each.ask.objective and each.direction == direction
    ]
    return {objective.name: figure for objective, figure in sorted(named, key=lambda pair: pair[0].rank)}


def _figures_of(entry: EntryPoint) -> tuple[Figure[Any], ...]:
    from harness.figures.figure import Figure

    loaded = _loaded(entry)
    declared = loaded if isinstance(loaded, tuple) else (loaded,)
    if not all(isinstance(each, Figure) for each in declared):
        raise UsageError(f"the plugin {_owner(entry)!r} names {entry.value}, which is no harness.figures.figure.Figure")
    return declared


def missing(chosen: Method[Any], site: Site) -> str | None:
    """What the method lacks in the site's main stack and the command that installs it, or None.

    For a method that quantizes in another stack, the main stack needs only what reads the result.
    """
    absent = [package for package in readers(chosen) if site.version(package) is None]
    if not absent:
        return None
    what = f"'qharness[{chosen.extra}]'" if chosen.extra else " ".join(absent)
    return f"{', '.join(absent)} is not installed; pip install {what}"


def readers(chosen: Method[Any]) -> tuple[str, ...]:
    """The packages needed to load the method's result."""
    return chosen.packages if chosen.readers is None else chosen.readers


def _plugins(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def _named(entry: EntryPoint, kind: type[N]) -> N:
    """The method, engine or metric that an entry point names. Raises UsageError for anything else or another name."""
    found = _loaded(entry)
    if not isinstance(found, kind) or found.name != entry.name:
        what = f"{kind.__module__}.{kind.__name__}"
        raise UsageError(f"the plugin {_owner(entry)!r} names {entry.value}, which is no {what} called {entry.name!r}")
    return found


def _loaded(entry: EntryPoint) -> Any:
    """The object that an entry point names. Raises UsageError, with the cause, if its import fails."""
    try:
        return entry.load()
    except Exception as error:
        raise UsageError(f"the plugin {_owner(entry)!r} fails at import: {type(error).__name__}: {error}") from error


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _object(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
