"""What the routers of a mixture of experts do in a window, as it is kept with the reference."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.core.capability import Routed

if TYPE_CHECKING:
    import torch

_SCORES, _CHOSEN = ":scores", ":chosen"


class RouterLog:
    """Collects what each block's router did, in the model's own precision: comparing loses nothing to rounding."""

    def __init__(self) -> None:
        self._blocks: dict[str, deque[Routed]] = defaultdict(deque)

    def see(self, block: str, routed: Routed) -> None:
        self._blocks[block].append(routed)

    def taken(self, tokens: int) -> dict[str, torch.Tensor]:
        """What each block did with the text's next tokens, as a safetensors file holds it; experts' numbers are int16.

        A forward pass reads a whole text or a part of one, never of two.
        """
        import torch

        found = {}
        for block, seen in self._blocks.items():
            parts: list[Routed] = []
            while seen and sum(len(each.chosen) for each in parts) < tokens:
                parts.append(seen.popleft())
            found[block + _SCORES] = torch.cat([each.scores for each in parts]).cpu().contiguous()
            found[block + _CHOSEN] = torch.cat([each.chosen for each in parts]).to(torch.int16).cpu().contiguous()
        return found


def routed_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Routed]:
    """What ``RouterLog.taken`` returned, by block."""
    blocks = [name.removesuffix(_SCORES) for name in tensors if name.endswith(_SCORES)]
    return {block: Routed(tensors[block + _SCORES], tensors[block + _CHOSEN].long()) for block in blocks}
