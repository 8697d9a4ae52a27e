"""Which calibration samples actually reached the model, with any library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.core.method import CalibrationSet
from harness.errors import InvalidRunError


class Consumption:
    """Watches the ids that embeddings are called with and recognizes the samples among them."""

    def __init__(self, calibration: CalibrationSet) -> None:
        self._calibration = calibration
        self._wanted: dict[bytes, set[int]] = {}  # equal samples cannot be distinguished
        for index, (row, length) in enumerate(zip(calibration.tokens, calibration.lengths, strict=True)):
            for form in (row, row[:length]):  # a library may strip the padding itself
                self._wanted.setdefault(_key(form), set()).add(index)
        self._seen: set[int] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside this context, watches the ids of every torch.nn.Embedding call."""
        import torch

        def look(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            if isinstance(module, torch.nn.Embedding) and inputs and inputs[0].ndim == 2:
                for row in inputs[0].tolist():
                    self._seen |= self._wanted.get(_key(row), set())

        handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()

    def consumed(self) -> CalibrationSet:
        """The samples that were seen, in order. Raises InvalidRunError if there were none."""
        from harness.text.calibration import digest

        if not self._seen:
            raise InvalidRunError("none of the calibration samples reached the model: its library used something else")
        kept = sorted(self._seen)
        tokens = [self._calibration.tokens[index] for index in kept]
        lengths = [self._calibration.lengths[index] for index in kept]
        return CalibrationSet(tokens, lengths, digest(tokens, lengths))


def _key(row: Any) -> bytes:
    return repr(list(row)).encode()
