"""Methods worth comparing first, by what the user is after, fitted to a model's widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import ValidationError

from harness.errors import UsageError
from harness.models.sources import SourceModel
from harness.planning.estimate.chosen import Chosen, parse
from harness.planning.support import misfit

Purpose = Literal["size", "speed", "quality"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

_OF_ENGINES = ("gguf type=Q4_K_M", "gguf type=Q8_0", "gguf type=Q6_K", "gguf type=Q3_K_M", "llmc-fp8", "llmc-int8")
_LADDERS: dict[Purpose, tuple[str, ...]] = {
    "size": (
        *("int8", "bnb-nf4", "rtn", "gptq", "fp8", "torchao-int4", "awq", "hqq", "gptq bits=3", "autoround"),
        *_OF_ENGINES,
    ),
    "speed": (
        *("int8", "torchao-int4", "torchao-fp8-dynamic", "torchao-int8-dynamic", "fp8", "gptq", "bnb-nf4", "awq"),
        *_OF_ENGINES,
    ),
    "quality": (
        *("int8", "fp8", "bnb-int8", "rtn bits=8", "gptq", "awq", "bnb-nf4", "autoround", "hqq bits=8"),
        *_OF_ENGINES,
    ),
}
"""The first are taken first. Each compares unlike kinds early: 8 and 4 bits, with and without calibration."""
GROUP_SIZES = (128, 64, 32)
"""Tried in this order where a method's own default divides no width of the model."""
_GROUP = "group_size"


def candidates(purpose: Purpose, named: Sequence[str], source: SourceModel) -> list[Chosen]:
    """The methods to consider, in the order in which they are taken: those that the user named, or a purpose's.

    Raises UsageError for a named one that is unknown or has a wrong parameter.
    """
    found: dict[str, Chosen] = {}
    for text in named or _LADDERS[purpose]:
        try:
            chosen = _fitted(parse(text, "--methods"), source)
        except UsageError:
            if named:
                raise
            continue  # a plugin replaced it, or its library changed what it takes
        if chosen.method.stage != "none" or chosen.params.model_dump(exclude_defaults=True):  # 'none' is the baseline
            found.setdefault(f"{chosen.method.name} {chosen.params!r}", chosen)
    return list(found.values())


def _fitted(chosen: Chosen, source: SourceModel) -> Chosen:
    """With a group size that divides the model's widths, where the user gave none and the default does not."""
    params = chosen.params
    if _GROUP not in type(params).model_fields or _GROUP in params.model_fields_set or _fits(chosen, source):
        return chosen
    given = params.model_dump(exclude_unset=True)
    for size in GROUP_SIZES:
        try:
            other = type(params).model_validate({**given, _GROUP: size})
        except ValidationError:
            continue
        sized = Chosen(chosen.method, other, f"{chosen.label} {_GROUP}={size}")
        if _fits(sized, source):
            return sized
    return chosen


def _fits(chosen: Chosen, source: SourceModel) -> bool:
    needs = chosen.method.needs(chosen.params)
    return misfit(chosen.method.name, needs, source.matrices.values(), source.model_type) is None
