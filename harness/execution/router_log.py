"""What the routers of a mixture of experts do with a text, as it is kept with the reference: one file for each block.

Rows are written as they come, because a streamed model reads the whole text before it goes on to its next layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.capability import Routed
from harness.errors import InvalidRunError
from harness.models.streaming.writing import TensorFile

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
        self._files: dict[str, TensorFile] = {}
        self._seen: Counter[str] = Counter()

    def see(self, block: str, routed: Routed) -> None:
        rows, first = _as_stored(routed), self._seen[block]
        self._seen[block] += len(rows[SCORES])
        if self._seen[block] > self._tokens:
            raise InvalidRunError(f"a router saw more than the text's {self._tokens} tokens")
        if block not in self._files:
            self._files[block] = self._file(block, rows)
        for name, part in rows.items():
            self._files[block].write_rows(name, part, first)
        if self._seen[block] == self._tokens:  # of a streamed model, before the next block begins
            self._files[block].close()

    def finish(self) -> None:
        """Raises InvalidRunError if a router did not see every token."""
        for block, file in self._files.items():
            file.close()
            seen = self._seen[block]
            if seen != self._tokens:
                raise InvalidRunError(f"{block}: its router saw {seen} of the text's {self._tokens} tokens")

    def _file(self, block: str, first: Mapping[str, torch.Tensor]) -> TensorFile:
        """A file for the rows of all tokens, of which these are the first."""
        all_rows = {name: rows.new_empty((self._tokens, rows.shape[1]), device="meta") for name, rows in first.items()}
        what, advice = "what a mixture's routers do with the text", "make room there, or score fewer windows"
        return TensorFile(self._folder / file_of(block), all_rows, {}, what, advice)


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

    return {SCORES: routed.scores, CHOSEN: routed.chosen.to(torch.int16)}
