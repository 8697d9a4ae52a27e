"""Reads single tensors of a checkpoint with plain reads, whose bytes are counted. No file is mapped into memory."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from harness.core.engine import Streaming
from harness.core.foreign import shown
from harness.errors import SourceError, UnsupportedError, reason_of
from harness.host.allocator import LARGE_BYTES, mapped
from harness.host.machine import usable_memory_bytes
from harness.models import safetensors
from harness.models.headers import weight_files

if TYPE_CHECKING:
    import torch

JUDGED_SHARE = 0.05
"""Of the time limit, for which a disk must have been read before it is judged again: one slow read is no slow disk."""


def dtypes() -> Mapping[str, torch.dtype]:
    """safetensors' own table of names, and E8M0, which it writes and reads but does not list there."""
    import torch
    from safetensors.torch import _TYPES

    return {**_TYPES, "F8_E8M0": torch.float8_e8m0fnu}


class TensorReader(Protocol):
    """The tensors that a model's parts are made from, by name. ``bytes_read`` and ``read_s`` add up all reads."""

    bytes_read: int
    read_s: float

    @property
    def tensors(self) -> Collection[str]: ...

    def size_of(self, names: Iterable[str]) -> int:
        """Bytes that the tensors take."""

    def meta(self, name: str) -> torch.Tensor:
        """A tensor's shape and dtype, without numbers."""

    def read(self, name: str) -> torch.Tensor:
        """A tensor in main memory of its own."""

    def close(self) -> None: ...


class CheckpointReader:
    """The tensors of a checkpoint's safetensors files. ``bytes_read`` and ``read_s`` add up all reads.

    Raises SourceError if a file is missing, cut short, or not a safetensors file.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        self._placed: dict[str, safetensors.Placed] = {}
        self._open: dict[Path, int] = {}
        self.bytes_read = 0
        self.read_s = 0.0
        for file in weight_files(folder):
            placed = safetensors.read(file)
            self._placed |= placed
            self._files |= dict.fromkeys(placed, file)

    @property
    def tensors(self) -> Mapping[str, safetensors.Placed]:
        """Every tensor by its name in the checkpoint."""
        return self._placed

    def size_of(self, names: Iterable[str]) -> int:
        """Bytes that the tensors take in the files."""
        return sum(self._placed[name].end - self._placed[name].begin for name in names)

    def meta(self, name: str) -> torch.Tensor:
        """A tensor's shape and dtype, without numbers."""
        import torch

        placed = self._placed[name]
        return torch.empty(placed.shape, dtype=self._dtype(name), device="meta")

    def read(self, name: str) -> torch.Tensor:
        """A tensor in main memory of its own. Raises SourceError if the file has become shorter."""
        import torch

        placed = self._placed[name]
        began = time.perf_counter()
        dtype = self._dtype(name)
        if math.prod(placed.shape) == 0:
            return torch.empty(placed.shape, dtype=dtype)
        size = placed.end - placed.begin
        memory = bytearray(size) if size < LARGE_BYTES else mapped(size)
        self._fill(memoryview(memory), name)
        self.read_s += time.perf_counter() - began
        self.bytes_read += size
        return torch.frombuffer(memory, dtype=dtype).view(placed.shape)

    def _fill(self, buffer: memoryview, name: str) -> None:
        file, at = self._files[name], self._placed[name].begin
        try:
            if file not in self._open:
                self._open[file] = os.open(file, os.O_RDONLY)
            while buffer:
                count = os.preadv(self._open[file], [buffer], at)
                if count == 0:
                    raise SourceError(
                        f"{shown(file)}: it was cut short within {name!r} after its header was read; fetch it again, "
                        "and leave a checkpoint as it is while a sweep reads it"
                    )
                buffer, at = buffer[count:], at + count
        except OSError as error:
            raise SourceError(f"{shown(file)}: cannot be read: {reason_of(error)}") from error

    def _dtype(self, name: str) -> torch.dtype:
        dtype = dtypes().get(self._placed[name].dtype)
        if dtype is None:
            raise SourceError(f"tensor {name!r} has the dtype {self._placed[name].dtype}, which torch has no type for")
        return dtype

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class DiskSpeed:
    """Whether a disk is fast enough for a run, by the reads so far. ``pass_bytes`` is what one pass reads."""

    def __init__(self, reader: TensorReader, pass_bytes: int, streaming: Streaming | None) -> None:
        self._reader, self._pass_bytes = reader, pass_bytes
        self._limit_s = streaming.time_s if streaming else None
        self._passes = streaming.passes if streaming else 1
        self._judged = (0, 0.0)

    def refuse_slow(self) -> None:
        """Raises UnsupportedError if reading alone takes longer than the run may, at the rate of the latest reads.

        Later passes over a checkpoint that memory can hold are read from there, so that only they show how fast it is.
        """
        reader, whole = self._reader, self._pass_bytes
        (judged_bytes, judged_s), limit_s = self._judged, self._limit_s
        if limit_s is None or reader.read_s - judged_s < max(1.0, JUDGED_SHARE * limit_s):  # too little to judge by
            return
        self._judged = reader.bytes_read, reader.read_s
        is_cached = reader.bytes_read < whole <= usable_memory_bytes()
        left = (1 if is_cached else self._passes) * whole - reader.bytes_read
        rate = max(reader.bytes_read - judged_bytes, 1) / (reader.read_s - judged_s)
        needed_s = reader.read_s + left / rate
        if left > 0 and needed_s > limit_s:
            raise UnsupportedError(
                f"its disk is too slow for the time limit: reading took {reader.read_s:.0f} s so far, and another "
                f"{left / 1e9:.1f} GB at {rate / 1e6:.0f} MB/s make it {needed_s:.0f} s; limits.time is "
                f"{limit_s:.0f} s; raise the limit, or put the checkpoint on a faster disk"
            )
