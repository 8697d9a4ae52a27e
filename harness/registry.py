"""Names of methods, engines and metrics, and the plugins behind them, imported only when asked for.

A third party adds a method by an entry point of the group ``qharness.methods`` that names a Method.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from types import MappingProxyType
from typing import Any

from harness.contracts import Engine, Method, Metric
from harness.errors import UsageError, refuse_unknown

METHOD_GROUP = "qharness.methods"

_METHODS = {
    "none": "harness.methods.none:NONE",
    "rtn": "harness.methods.rtn:RTN",
    "int8": "harness.methods.torchao_weight_only:INT8",
    "fp8": "harness.methods.torchao_weight_only:FP8",
    "bnb-int8": "harness.methods.bnb_int8:BNB_INT8",
    "bnb-nf4": "harness.methods.bnb_4bit:NF4",
    "bnb-fp4": "harness.methods.bnb_4bit:FP4",
}
ALIASES: Mapping[str, str] = MappingProxyType({"ptq": "rtn"})
_ENGINES = {"transformers": "harness.engines.transformers:TRANSFORMERS"}
_METRICS = {
    "perplexity": "harness.metrics.perplexity:PERPLEXITY",
    "divergence": "harness.metrics.divergence:DIVERGENCE",
    "memory": "harness.metrics.memory:MEMORY",
    "throughput": "harness.metrics.throughput:THROUGHPUT",
}


def method_names() -> list[str]:
    """Every known method: the harness's own first, then the installed plugins'."""
    return [*_METHODS, *sorted(set(_plugins()) - set(_METHODS))]


def engine_names() -> list[str]:
    return list(_ENGINES)


def metric_names() -> list[str]:
    return list(_METRICS)


def method(name: str) -> Method[Any]:
    """The method of that name or alias. Raises UsageError for an unknown or a broken one."""
    name = ALIASES.get(name, name)
    if name in _METHODS:
        return _object(_METHODS[name])  # type: ignore[no-any-return]
    plugins = _plugins()
    if name not in plugins:
        refuse_unknown("method", name, [*method_names(), *ALIASES])
    entry = plugins[name]
    owner = entry.dist.name if entry.dist else entry.value
    try:
        found = entry.load()
    except Exception as error:
        raise UsageError(f"the plugin {owner!r} fails at import: {type(error).__name__}: {error}") from error
    if not isinstance(found, Method) or found.name != name:
        raise UsageError(
            f"the plugin {owner!r} names {entry.value}, which is no harness.contracts.Method called {name!r}"
        )
    return found


def engine(name: str) -> Engine:
    """The engine of that name. Raises UsageError for an unknown one."""
    if name not in _ENGINES:
        refuse_unknown("engine", name, _ENGINES)
    return _object(_ENGINES[name])  # type: ignore[no-any-return]


def metric(name: str) -> Metric:
    """The metric of that name. Raises UsageError for an unknown one."""
    if name not in _METRICS:
        refuse_unknown("metric", name, _METRICS)
    return _object(_METRICS[name])  # type: ignore[no-any-return]


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, found without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def missing(chosen: Method[Any]) -> str | None:
    """What the method lacks in this environment and the command that installs it, or None."""
    absent = [package for package in chosen.packages if installed_version(package) is None]
    if not absent:
        return None
    what = f"'qharness[{chosen.extra}]'" if chosen.extra else " ".join(absent)
    return f"{', '.join(absent)} is not installed; pip install {what}"


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=METHOD_GROUP)}


def _object(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
