"""The tensors of suspended forward passes, in memory up to a budget and beyond it in a file each."""

from __future__ import annotations

import ctypes
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.foreign import shown
from harness.core.owner import temporary_folder
from harness.errors import StorageError, reason_of

if TYPE_CHECKING:
    import torch


class WaitingStates:
    """Holds tensors under a number until they are taken back.

    Beyond ``budget_bytes`` in all, a holder's tensors are written to a file and their storages emptied; ``take`` fills
    them again, so that all references to them stay valid. Storages that another holder has, or that are to be shared
    by all (``share``), stay as they are.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._shared: set[int] = set()
        self._holders: Counter[int] = Counter()
        self._held: dict[int, dict[int, Any]] = {}
        self._bytes: dict[int, int] = {}
        self._spilled: dict[int, Path] = {}
        self._folder: Path | None = None
        self._closing = ExitStack()
        self.spilled_bytes = 0

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """From now on these are never emptied, because passes that are not suspended may read them."""
        self._shared = {tensor.untyped_storage()._cdata for tensor in tensors}

    def hold(self, number: int, tensors: Iterable[torch.Tensor]) -> None:
        """Raises StorageError, with what to do, if there is no room on the disk."""
        storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in tensors}
        own = {key: each for key, each in storages.items() if key not in self._shared and not self._holders[key]}
        size = sum(each.nbytes() for each in own.values())
        self._held[number] = own
        self._holders.update(own.keys())
        if size and sum(self._bytes.values()) + size > self._budget:
            self._spill(number, list(own.values()))
        else:
            self._bytes[number] = size

    def take(self, number: int) -> None:
        """Fills the tensors held under a number again, and forgets them."""
        import torch

        storages = self._held.pop(number)
        self._holders.subtract(storages.keys())
        self._bytes.pop(number, None)
        path = self._spilled.pop(number, None)
        if path is None:
            return
        with path.open("rb") as file:
            for storage in storages.values():
                size = int.from_bytes(file.read(8), "little")
                storage.resize_(size)
                host = storage if storage.device.type == "cpu" else torch.UntypedStorage(size)  # type: ignore[no-untyped-call]
                file.readinto(_memory(host))
                if host is not storage:
                    storage.copy_(host)
        path.unlink()

    def close(self) -> None:
        self._closing.close()
        self._folder = None

    def _spill(self, number: int, storages: list[torch.UntypedStorage]) -> None:
        path = self._file(number)
        size = sum(storage.nbytes() for storage in storages)
        try:
            with path.open("wb") as file:
                for storage in storages:
                    file.write(storage.nbytes().to_bytes(8, "little"))
                    host = storage.cpu()  # type: ignore[no-untyped-call]
                    file.write(_memory(host))
        except OSError as error:
            free = shutil.disk_usage(path.parent).free
            raise StorageError(
                f"{shown(path.parent)}: no room for the states of suspended windows ({reason_of(error)}; "
                f"{free / 1e9:.1f} GB are free): set TMPDIR to a folder on a larger disk, or score fewer windows"
            ) from error
        for storage in storages:
            storage.resize_(0)
        self._spilled[number] = path
        self.spilled_bytes += size

    def _file(self, number: int) -> Path:
        if self._folder is None:
            self._folder = self._closing.enter_context(temporary_folder())
        return self._folder / str(number)


def _memory(storage: torch.UntypedStorage) -> memoryview:
    """A storage's bytes in main memory. Not through numpy, which makes a storage that cannot be emptied any more."""
    return memoryview((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())).cast("B")
