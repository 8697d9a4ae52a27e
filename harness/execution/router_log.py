"""What the routers of a mixture of experts do in one forward pass, as it is kept with the reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.core.capability import LoadedModel, Routed, ShowsRouters
from harness.execution.context import Context
from harness.models.scope import holds_experts

if TYPE_CHECKING:
    import torch

_SCORES, _CHOSEN = ":scores", ":chosen"


class RouterLog:
    """Collects what each block's router did, in the model's own precision: comparing loses nothing to rounding."""

    def __init__(self) -> None:
        self._blocks: dict[str, list[Routed]] = defaultdict(list)

    def see(self, block: str, routed: Routed) -> None:
        self._blocks[block].append(routed)

    def tensors(self) -> dict[str, torch.Tensor]:
        """As a safetensors file holds it; numbers of experts take two bytes."""
        import torch

        found = {}
        for block, parts in self._blocks.items():
            found[block + _SCORES] = torch.cat([each.scores for each in parts]).cpu().contiguous()
            found[block + _CHOSEN] = torch.cat([each.chosen for each in parts]).to(torch.int16).cpu().contiguous()
        return found


def routed_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Routed]:
    """What ``RouterLog.tensors`` returned, by block."""
    blocks = [name.removesuffix(_SCORES) for name in tensors if name.endswith(_SCORES)]
    return {block: Routed(tensors[block + _SCORES], tensors[block + _CHOSEN].long()) for block in blocks}


def readable_routers(context: Context, model: LoadedModel) -> ShowsRouters | None:
    """The model if it is a mixture of experts whose routers can be read, else None; a fact says why they cannot."""
    if not any(holds_experts(name, len(shape)) for name, shape in context.shapes.items()):
        return None
    if not isinstance(model, ShowsRouters):
        reason = f"the engine {context.spec.engine} does not show what routers do"
    else:
        try:
            return model if model.router_blocks() else None
        except Exception as error:  # noqa: BLE001 - becomes a fact
            reason = next(iter(str(error).splitlines()), type(error).__name__)
    context.fact("routers_not_read", reason=reason)
    return None
