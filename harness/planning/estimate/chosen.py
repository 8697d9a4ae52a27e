"""A method with its parameters, as written on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from harness import plugins as registry
from harness.core.foreign import quoted
from harness.core.format import SERVED_FORMAT
from harness.core.method import Method
from harness.errors import UsageError, did_you_mean
from harness.recipe.faults import expected
from harness.recipe.yaml_file import read_scalar


@dataclass(frozen=True)
class Chosen:
    """A method, its parameters as its own type, and its label in tables."""

    method: Method[Any]
    params: Any
    label: str


def parse(text: str, option: str = "--method") -> Chosen:
    """Parses ``rtn``, ``rtn bits=4 group_size=64``, ``bnb-nf4 double_quant``: variants as tables label them.

    Raises UsageError for an unknown method or parameter, an invalid value, or a published checkpoint.
    """
    name, *words = text.split() or [""]
    method = registry.method(name)
    if method.published:
        raise UsageError(f"{option} {name}: what a published checkpoint takes is the size of its files")
    if method.writes == SERVED_FORMAT:
        raise UsageError(f"{option} {name}: what a server takes is known there alone")
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in method.params.model_fields:
            raise UsageError(
                f"{option} {name}: unknown parameter {quoted(key)}{did_you_mean(key, method.params.model_fields)}"
            )
        try:
            given[key] = read_scalar(value) if equals else True
        except ValueError as error:
            raise UsageError(f"{option} {name}: {key}: {error}") from None
    try:
        params = method.params.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise UsageError(f"{option} {name}: {place}: {expected(fault)}") from None
    return Chosen(method, params, " ".join([method.name, *words]))


def every() -> list[Chosen]:
    """Every method with its default parameters, without broken plugins."""
    found = []
    for name in registry.method_names():
        try:
            found.append(parse(name))
        except UsageError:
            continue
    return found
