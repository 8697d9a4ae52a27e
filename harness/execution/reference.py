"""The reference: the baseline's final hidden states of every window, and the head that turns them into logits.

It is written and read one window at a time, so that memory stays bounded for any vocabulary and text. If the head is
not a dense matrix, the reference holds logits instead. Of a mixture of experts it also holds what its routers did, in a
file for each block.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.core.capability import (
    Factored,
    HeadWeights,
    Logits,
    Routed,
    ShowsRouters,
    logits_each,
    states_and_head,
    states_each,
)
from harness.core.foreign import parse_json, read_file
from harness.core.metric import Windows
from harness.errors import DamagedError, InvalidRunError, ResultsError
from harness.execution.router_log import RouterLog, block_of, file_of, read_rows
from harness.numerics.logits import finish
from harness.storage.checksums import file_sha256

if TYPE_CHECKING:
    import torch

MANIFEST, HEAD = "reference.json", "head.safetensors"
MAX_MANIFEST_BYTES = 64 * 2**20


def write(model: Logits, windows: Windows, folder: Path, routers: ShowsRouters | None = None) -> None:
    """Runs the baseline over the windows and saves what variants will be compared with.

    ``routers`` is the model if it is a mixture of experts whose routers can be read: what they do is saved too.
    Raises InvalidRunError, with the window, for output that is not finite.
    """
    import torch
    from safetensors.torch import save_file

    head = _write_head(model, folder)
    read = (torch.tensor([tokens[:-1]]) for tokens in windows.tokens)
    log = RouterLog(folder, sum(len(tokens) - 1 for tokens in windows.tokens))
    with routers.watching_routers(log.see) if routers else nullcontext():
        for index, kept in enumerate(states_each(model, read) if head else logits_each(model, read)):
            if not bool(kept.isfinite().all()):
                raise InvalidRunError(f"the baseline's output for window {index} is not finite")
            save_file({"kept": kept[0].cpu().contiguous()}, folder / _window(index))
    log.finish()
    manifest = {
        "protocol": dict(windows.protocol),
        "scale": head.scale if head else 1.0,
        "softcap": head.softcap if head else None,
        "sha256": {path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _write_head(model: Logits, folder: Path) -> HeadWeights | None:
    """Saves a dense head; returns it without its matrix, which need not stay in memory. None if it is not dense."""
    from safetensors.torch import save_file

    head = model.output_embedding() if isinstance(model, Factored) else None
    if head is None:
        return None
    tensors = {"weight": head.weight} | ({"bias": head.bias} if head.bias is not None else {})
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / HEAD)
    return replace(head, weight=head.weight.new_empty(0), bias=None)  # a slice would keep all of it


class Kept(Protocol):
    """What a model is compared with, one window at a time."""

    def window(self, index: int) -> torch.Tensor:
        """The kept tensor of a window: hidden states (length − 1, width) or logits (length − 1, vocabulary)."""
        ...

    def logits(self, kept: torch.Tensor) -> torch.Tensor:
        """The final logits of a stretch of a window."""
        ...


class Itself:
    """A model as its own reference: runs each window alone, all of them when the first is requested."""

    def __init__(self, model: Logits, windows: Windows) -> None:
        self._model, self._windows = model, windows
        self._head = states_and_head(model)[1]
        self._states: list[torch.Tensor] = []

    def window(self, index: int) -> torch.Tensor:
        import torch

        if not self._states:
            alone = (torch.tensor([list(tokens[:-1])]) for tokens in self._windows.tokens)
            self._states = [states[0] for states in states_each(self._model, alone)]
        return self._states[index]

    def logits(self, kept: torch.Tensor) -> torch.Tensor:
        return self._head(kept)


class Reference:
    """A reference read from disk. Every file is checked against its checksum when it is first read."""

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder
        self._device = device
        manifest = _manifest(folder)
        self._sha256: dict[str, str] = manifest["sha256"]
        self._protocol: dict[str, object] = manifest["protocol"]
        self._checked: set[str] = set()
        self._head: HeadWeights | None = None
        if HEAD in self._sha256:
            tensors = self._read(HEAD)
            self._head = HeadWeights(tensors["weight"], tensors.get("bias"), manifest["scale"], manifest["softcap"])

    def check(self, windows: Windows) -> None:
        """Raises InvalidRunError if the variant's tokens differ from the baseline's."""
        for key in ("tokens_sha256", "context", "windows"):
            if windows.protocol[key] != self._protocol[key]:
                raise InvalidRunError(
                    f"the variant's {key} differs from the reference's; their tokenizers are not the same"
                )

    def window(self, index: int) -> torch.Tensor:
        """The kept tensor of a window: hidden states (length − 1, width) or logits (length − 1, vocabulary)."""
        return self._read(_window(index))["kept"]

    @cached_property
    def router_blocks(self) -> frozenset[str]:
        """The blocks of which it holds what the baseline's routers did; none of a dense model."""
        return frozenset(block for block in map(block_of, self._sha256) if block is not None)

    def routed(self, block: str, first: int, stop: int) -> Routed:
        """What the baseline's router did in a block with some of the tokens that it read of all windows in order."""
        self._check(file_of(block))
        found = read_rows(self._folder / file_of(block), first, stop)
        return Routed(found.scores.to(self._device), found.chosen.to(self._device))

    def logits(self, kept: torch.Tensor) -> torch.Tensor:
        """The baseline's final logits of a stretch of a window."""
        if self._head is None:
            return kept
        import torch

        logits = torch.nn.functional.linear(kept, self._head.weight, self._head.bias)
        return finish(logits, self._head.scale, self._head.softcap)

    def _read(self, name: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load

        path = self._folder / name
        content = path.read_bytes() if path.exists() else b""  # read once, for the checksum and for the tensors
        if hashlib.sha256(content).hexdigest() != self._sha256.get(name):
            raise self._damaged(name)
        return {key: tensor.to(self._device) for key, tensor in load(content).items()}

    def _check(self, name: str) -> None:
        """Of a file that is read in parts, once. Raises DamagedError."""
        if name in self._checked:
            return
        path = self._folder / name
        if not path.exists() or file_sha256(path) != self._sha256.get(name):
            raise self._damaged(name)
        self._checked.add(name)

    def _damaged(self, name: str) -> DamagedError:
        return DamagedError(f"{self._folder / name}: damaged; delete {self._folder} and run the recipe again")


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest that ``write`` wrote. Raises DamagedError if it is not such a one."""
    try:
        found = parse_json(read_file(folder / MANIFEST, MAX_MANIFEST_BYTES, ResultsError), MANIFEST, ResultsError)
    except ResultsError as error:
        raise DamagedError(f"{error}; delete {folder} and run the recipe again") from None
    if not isinstance(found, dict) or not {"protocol", "scale", "softcap", "sha256"} <= found.keys():
        raise DamagedError(f"{folder / MANIFEST}: damaged; delete {folder} and run the recipe again")
    return found


def _window(index: int) -> str:
    return f"window-{index:05d}.safetensors"
