"""Writes a checkpoint tensor by tensor: the files that ``save_pretrained`` would write of the whole model."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

from harness.core.foreign import shown
from harness.errors import HarnessError, StorageError, reason_of
from harness.models.streaming.reading import dtypes

if TYPE_CHECKING:
    import torch

ALIGNMENT = 8
"""The header is padded with spaces to a multiple of so many bytes."""


class CheckpointWriter:
    """A checkpoint of a model whose tensors have shapes but no numbers yet. ``write`` gives them their numbers.

    transformers itself saves the configuration, names the tensors and divides them into files; only the files' contents
    are written here, each tensor at its place. Raises StorageError, with what to do, if the disk has no room.
    ``save`` is what calls ``save_pretrained`` of a library that writes more than that.
    """

    def __init__(self, model: Any, folder: Path, save: Callable[[], object] | None = None) -> None:
        self._model = model
        self._files: list[TensorFile] = []
        with mock.patch("transformers.modeling_utils.safe_save_file", self._lay_out):
            save() if save else model.save_pretrained(folder)
        self._places = {name: file for file in self._files for name in file.names}
        self._left = set(self._places)

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes parameters and buffers, by their names in the model: all that one part owns."""
        from transformers.core_model_loading import revert_weight_conversion

        for name, tensor in revert_weight_conversion(self._model, dict(tensors)).items():
            if name not in self._left:
                raise HarnessError(f"{name} is not what the checkpoint still lacks")
            self._places[name].write(name, tensor)
            self._left.discard(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        if error is None and self._left:
            raise HarnessError(f"the checkpoint still lacks {sorted(self._left)[0]}")

    def _lay_out(self, tensors: Mapping[str, torch.Tensor], file: str, metadata: Mapping[str, str]) -> None:
        self._files.append(TensorFile(Path(file), tensors, metadata))


class TensorFile:
    """A file with the header that safetensors writes of some tensors, each of which ``write`` puts in its place.

    Its room on the disk is taken at once. Raises StorageError if there is none: it says for ``what``, and ``advice``.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, torch.Tensor],
        metadata: Mapping[str, str],
        what: str = "the checkpoint",
        advice: str = "make room there",
    ) -> None:
        names = {dtype: name for name, dtype in dtypes().items()}
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        places: dict[str, tuple[int, int]] = {}
        end = 0
        for name in _in_order(tensors):
            tensor = tensors[name]
            places[name] = (end, end + tensor.numel() * tensor.element_size())
            header[name] = {
                "dtype": names[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": list(places[name]),
            }
            end = places[name][1]
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        start = 8 + len(text)
        self._path, self._what, self._advice = path, what, advice
        self._places = {name: (start + begin, start + stop) for name, (begin, stop) in places.items()}
        try:
            self._file = path.open("wb", buffering=0)
            os.posix_fallocate(self._file.fileno(), 0, start + end)
        except OSError as error:
            raise self._no_room(error) from error
        self._pwrite(memoryview(len(text).to_bytes(8, "little") + text), 0)

    @property
    def names(self) -> Collection[str]:
        return self._places.keys()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        begin, end = self._places[name]
        raw = _bytes_of(tensor)
        if len(raw) != end - begin:
            raise HarnessError(f"{name} has {len(raw)} bytes, and {end - begin} were planned")
        self._pwrite(raw, begin)

    def write_rows(self, name: str, rows: torch.Tensor, first: int) -> None:
        """Puts the rows of a tensor from ``first`` on in their place."""
        begin, end = self._places[name]
        raw = _bytes_of(rows)
        at = begin + first * math.prod(rows.shape[1:]) * rows.element_size()
        if at + len(raw) > end:
            raise HarnessError(f"{name} has no place for {len(rows)} rows after {first}")
        self._pwrite(raw, at)

    def close(self) -> None:
        """May be called again."""
        self._file.close()

    def _pwrite(self, buffer: memoryview, at: int) -> None:
        try:
            while buffer:
                count = os.pwrite(self._file.fileno(), buffer, at)
                buffer, at = buffer[count:], at + count
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> StorageError:
        return no_room(self._path.parent, self._what, error, self._advice)


def no_room(folder: Path, what: str, error: OSError, advice: str) -> StorageError:
    """What to raise for something that cannot be written to a folder."""
    free = shutil.disk_usage(folder).free
    return StorageError(
        f"{shown(folder)}: no room for {what} ({reason_of(error)}; {free / 1e9:.1f} GB are free): {advice}"
    )


def _in_order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The tensors' names in safetensors' own order, which it shows in a file of the same names without elements."""
    import torch
    from safetensors.torch import save

    content = save({name: torch.empty(0, dtype=tensor.dtype) for name, tensor in tensors.items()})
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return [name for name in header if name in tensors]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
