"""What a method's quantized model computes in memory, whether the method returns that model or probes it itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from harness.core.method import Method, QuantizeJob

T = TypeVar("T")


def quantized(method: Method[Any], job: QuantizeJob[Any], look: Callable[[Any], T]) -> T:
    """Quantizes, and returns what ``look`` makes of the model in memory.

    Exactly one model may be looked at. A method that probes the model itself may not copy it.
    """
    import torch

    seen: list[T] = []
    sizes: list[int] = []

    def probe(model: Any) -> None:
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        with torch.inference_mode():
            seen.append(look(model))

    assert method.quantize is not None
    with _copies() as copied:
        model = method.quantize(replace(job, probe=probe))
    if model is None:
        assert sum(copied) < sizes[0] / 2, f"{method.name} copied {sum(copied)} of {sizes[0]} parameters"
    else:
        probe(model)
    [made] = seen
    return made


@contextmanager
def _copies() -> Iterator[list[int]]:
    """The sizes of the parameters that are deep-copied within this context."""
    import torch

    copied: list[int] = []
    deepcopy = torch.nn.Parameter.__deepcopy__

    def count(parameter: torch.nn.Parameter, memo: dict[int, Any]) -> Any:
        copied.append(parameter.numel())
        return deepcopy(parameter, memo)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Parameter, "__deepcopy__", count)
        yield copied
