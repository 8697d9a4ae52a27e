"""What the routers of a mixture of experts do in a window, as it is kept with the reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.core.capability import Routed

if TYPE_CHECKING:
    import torch

_SCORES, _CHOSEN = ":scores", ":chosen"


class RouterLog:
    """Collects what each block's router did, in the model's own precision: comparing loses nothing to rounding."""

    def __init__(self) -> None:
        self._blocks: dict[str, list[Routed]] = defaultdict(list)

    def see(self, block: str, routed: Routed) -> None:
        self._blocks[block].append(routed)

    def taken(self) -> dict[str, torch.Tensor]:
        """What was collected since the last call, as a safetensors file holds it; numbers of experts take 2 bytes."""
        import torch

        found = {}
        for block, parts in self._blocks.items():
            found[block + _SCORES] = torch.cat([each.scores for each in parts]).cpu().contiguous()
            found[block + _CHOSEN] = torch.cat([each.chosen for each in parts]).to(torch.int16).cpu().contiguous()
        self._blocks.clear()
        return found


def routed_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Routed]:
    """What ``RouterLog.taken`` returned, by block."""
    blocks = [name.removesuffix(_SCORES) for name in tensors if name.endswith(_SCORES)]
    return {block: Routed(tensors[block + _SCORES], tensors[block + _CHOSEN].long()) for block in blocks}
