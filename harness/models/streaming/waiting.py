"""The tensors of suspended forward passes, in memory up to a budget and beyond it in a file each.

Those in main memory wait in memory of their own. In the heap they would lie among a layer's intermediate results, and
leave gaps there that are too small for such results: the heap would grow, and a memory limit counts all of it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.owner import temporary_folder
from harness.host.allocator import mapped
from harness.models.streaming.writing import no_room

if TYPE_CHECKING:
    import torch


class WaitingStates:
    """Holds tensors under a number until they are taken back.

    Their storages are emptied, and ``take`` fills them again, so that all references to them stay valid. Beyond
    ``budget_bytes`` in all, a holder's tensors are written to a file. Within it those on an accelerator stay as they
    are. Storages that another holder has too, or that are to be shared by all (``share``), always do.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._shared: set[int] = set()
        self._holders: Counter[int] = Counter()
        self._held: dict[int, Mapping[int, torch.UntypedStorage]] = {}
        self._bytes: dict[int, int] = {}
        self._aside: dict[int, list[tuple[torch.UntypedStorage, mmap.mmap]]] = {}
        self._spilled: dict[int, tuple[Path, Sequence[torch.UntypedStorage]]] = {}
        self._folder: Path | None = None
        self._closing = ExitStack()
        self.spilled_bytes = 0

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """From now on these are never emptied, because passes that are not suspended may read them."""
        self._shared = {tensor.untyped_storage()._cdata for tensor in tensors}

    def hold(self, number: int, tensors: Iterable[torch.Tensor]) -> None:
        """Raises StorageError, with what to do, if there is no room on the disk."""
        found = (each.untyped_storage() for each in tensors)
        storages = {each._cdata: each for each in found if each._cdata not in self._shared}
        own = [each for key, each in storages.items() if each.nbytes() and not self._holders[key]]
        size = sum(each.nbytes() for each in own)
        self._held[number] = storages
        self._holders.update(storages.keys())
        if size and sum(self._bytes.values()) + size > self._budget:
            self._spill(number, own)
        else:
            self._bytes[number] = size
            self._aside[number] = [(each, _put_aside(each)) for each in own if each.device.type == "cpu"]

    def take(self, number: int) -> None:
        """Fills the tensors held under a number again, and forgets them."""
        self._holders.subtract(self._held.pop(number).keys())
        self._bytes.pop(number, None)
        for storage, content in self._aside.pop(number, ()):
            storage.resize_(len(content))
            _memory(storage)[:] = content
        if number in self._spilled:
            self._read_back(*self._spilled.pop(number))

    def close(self) -> None:
        self._closing.close()
        self._folder = None
        self._aside.clear()

    def _spill(self, number: int, storages: Sequence[torch.UntypedStorage]) -> None:
        path = self._file(number)
        size = sum(storage.nbytes() for storage in storages)
        try:
            with path.open("wb") as file:
                for storage in storages:
                    file.write(storage.nbytes().to_bytes(8, "little"))
                    host = storage.cpu()  # type: ignore[no-untyped-call]
                    file.write(_memory(host))
        except OSError as error:
            advice = "set TMPDIR to a folder on a larger disk, or score fewer windows"
            raise no_room(path.parent, "the states of suspended windows", error, advice) from error
        for storage in storages:
            storage.resize_(0)
        self._spilled[number] = path, storages
        self.spilled_bytes += size

    @staticmethod
    def _read_back(path: Path, storages: Sequence[torch.UntypedStorage]) -> None:
        import torch

        with path.open("rb") as file:
            for storage in storages:
                size = int.from_bytes(file.read(8), "little")
                storage.resize_(size)
                host = storage if storage.device.type == "cpu" else torch.UntypedStorage(size)  # type: ignore[no-untyped-call]
                file.readinto(_memory(host))
                if host is not storage:
                    storage.copy_(host)
        path.unlink()

    def _file(self, number: int) -> Path:
        if self._folder is None:
            self._folder = self._closing.enter_context(temporary_folder())
        return self._folder / str(number)


def _put_aside(storage: torch.UntypedStorage) -> mmap.mmap:
    """The content of a storage in main memory, which is emptied."""
    content = mapped(storage.nbytes())
    content[:] = _memory(storage)
    storage.resize_(0)
    return content


def _memory(storage: torch.UntypedStorage) -> memoryview:
    """A storage's bytes in main memory. Not through numpy, which makes a storage that cannot be emptied any more."""
    return memoryview((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())).cast("B")
