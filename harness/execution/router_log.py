"""What the routers of a mixture of experts do with a text, as it is kept with the reference: one file for each block.

Rows are written as they come, because a streamed model reads the whole text before it goes on to its next layer.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.capability import Routed
from harness.core.foreign import shown
from harness.errors import InvalidRunError, StorageError, reason_of

if TYPE_CHECKING:
    import torch

SCORES, CHOSEN = "scores", "chosen"
_BEGIN, _END = "router-", ".safetensors"


class RouterLog:
    """Writes what each block's router did, in the model's own precision: comparing loses nothing to rounding.

    ``tokens`` are those that the model reads in all; every block reads them in order. Raises StorageError, with what to
    do, if there is no room on the disk.
    """

    def __init__(self, folder: Path, tokens: int) -> None:
        self._folder, self._tokens = folder, tokens
        self._blocks: dict[str, _Rows] = {}

    def see(self, block: str, routed: Routed) -> None:
        rows = _as_stored(routed)
        try:
            if block not in self._blocks:
                self._blocks[block] = _Rows(self._folder / file_of(block), self._tokens, rows)
            self._blocks[block].write(rows)
        except OSError as error:
            free = shutil.disk_usage(self._folder).free
            raise StorageError(
                f"{shown(self._folder)}: no room for what a mixture's routers do with the text ({reason_of(error)}; "
                f"{free / 1e9:.1f} GB are free): make room, or score fewer windows"
            ) from error

    def finish(self) -> None:
        """Raises InvalidRunError if a router did not see every token."""
        for block, rows in self._blocks.items():
            rows.close()
            if rows.written != self._tokens:
                raise InvalidRunError(f"{block}: its router saw {rows.written} of the text's {self._tokens} tokens")


class _Rows:
    """A safetensors file of two matrices that grow together, by a row per token."""

    def __init__(self, path: Path, tokens: int, first: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import _TYPES

        names = {dtype: name for name, dtype in _TYPES.items()}  # the format's own table
        header: dict[str, Any] = {}
        ends = [0]
        for name, rows in first.items():
            ends.append(ends[-1] + tokens * _row_bytes(rows))
            header[name] = {
                "dtype": names[rows.dtype],
                "shape": [tokens, rows.shape[1]],
                "data_offsets": ends[-2:],
            }
        text = json.dumps(header).encode()
        start = 8 + len(text)
        self._begin = {name: start + begin for name, begin in zip(first, ends[:-1], strict=True)}
        self._tokens = tokens
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(start + ends[-1])
        self.written = 0

    def write(self, rows: dict[str, torch.Tensor]) -> None:
        count = len(rows[SCORES])
        if self.written + count > self._tokens:
            raise InvalidRunError(f"a router saw more than the text's {self._tokens} tokens")
        for name, part in rows.items():
            self._file.seek(self._begin[name] + self.written * _row_bytes(part))
            self._file.write(_raw(part))
        self.written += count
        if self.written == self._tokens:  # of a streamed model, before the next block begins
            self.close()

    def close(self) -> None:
        self._file.close()


def file_of(block: str) -> str:
    """The name of a block's file."""
    return f"{_BEGIN}{block}{_END}"


def block_of(file: str) -> str | None:
    """The block of a file of this name; None of a file that holds something else."""
    return file[len(_BEGIN) : -len(_END)] if file.startswith(_BEGIN) and file.endswith(_END) else None


def read_rows(path: Path, first: int, stop: int) -> Routed:
    """What a block's router did with the tokens from ``first`` to before ``stop``."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        scores, chosen = (file.get_slice(name)[first:stop] for name in (SCORES, CHOSEN))
    return Routed(scores, chosen.long())


def _as_stored(routed: Routed) -> dict[str, torch.Tensor]:
    """Experts' numbers are int16."""
    import torch

    return {SCORES: routed.scores.cpu().contiguous(), CHOSEN: routed.chosen.to(torch.int16).cpu().contiguous()}


def _row_bytes(rows: torch.Tensor) -> int:
    return rows.shape[1] * rows.element_size()


def _raw(rows: torch.Tensor) -> memoryview:
    import torch

    return rows.reshape(-1).view(torch.uint8).numpy().data
