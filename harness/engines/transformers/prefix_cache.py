"""Prefix caches for the transformers engine: forking, selecting and joining them, and masks for rows that branch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from harness.core.capability import Branching

PROBE_TOKENS = 16
BRANCH_TOLERANCE = 0.2
"""Largest allowed difference between branches and the same tokens run alone, relative to the effect of not branching.

Rounding causes up to 0.1 in bfloat16; positions that ignore the branches cause 0.3 or more.
"""


def branches(model: Branching) -> bool:
    """Whether two branches of one stem give the same states as each run alone, with and without a prefix cache."""
    import torch

    tokens = torch.arange(PROBE_TOKENS).remainder(model.vocabulary)
    stem, one, other = tokens[:6], tokens[6:11], tokens[11:]
    visible_until = torch.tensor([16] * 6 + [11] * 5 + [16] * 5)
    try:
        with torch.inference_mode():
            alone = model.hidden(torch.stack([torch.cat([stem, one]), torch.cat([stem, other])]))
            expected = torch.cat([alone[0], alone[1, 6:]])
            changed = (model.hidden(tokens[None])[0] - expected).float().norm()
            _, prefix = model.extend_prefix(stem, None)
            rest = tokens[6:], visible_until[6:] - 6
            after = [model.forward_tree(*rest, prefix) for _ in range(2)]  # the prefix cache must not change
            whole = model.forward_tree(tokens, visible_until, None)
    except (AttributeError, TypeError, ValueError, RuntimeError):  # the model does not accept this mask or cache
        return False
    trees = [whole, *(torch.cat([alone[0, :6], states]) for states in after)]
    return all(bool((tree - expected).float().norm() <= BRANCH_TOLERANCE * changed) for tree in trees)


def sees_all(config: Any) -> bool:
    """Whether every layer attends to all earlier tokens. A sliding window would count tokens of other branches."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds:
        return set(kinds) == {"full_attention"}
    return not getattr(text, "sliding_window", None)


def fork(cache: Any | None) -> Any | None:
    """A cache with the same tensors that can grow without changing the old one."""
    if cache is None:
        return None
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked


def selected(cache: Any, rows: torch.Tensor, length: int) -> Any:
    """The last ``length`` tokens of a cache, of these rows of its batch."""

    def states(layer: int, kind: str) -> torch.Tensor:
        own: torch.Tensor = getattr(cache.layers[layer], kind)  # layers may be on several devices
        return own[rows.to(own.device), :, -length:]

    return _rebuilt(cache, states)


def joined(caches: Sequence[Any]) -> Any:
    """The caches as one batch, left-padded to the longest."""
    import torch

    longest = max(cache.get_seq_length() for cache in caches)

    def states(layer: int, kind: str) -> torch.Tensor:
        parts = [getattr(cache.layers[layer], kind) for cache in caches]
        return torch.cat([torch.nn.functional.pad(part, (0, 0, longest - part.shape[-2], 0)) for part in parts])

    return _rebuilt(caches[0], states)


def _rebuilt(cache: Any, states: Callable[[int, str], torch.Tensor]) -> Any:
    """A copy of a cache with new states (batch, heads, length, width), given by layer and kind."""
    rebuilt = fork(cache)
    for index, layer in enumerate(rebuilt.layers):  # type: ignore[union-attr]
        layer.keys, layer.values = states(index, "keys"), states(index, "values")
    return rebuilt


def tree_mask(visible_until: torch.Tensor, prefix: int) -> torch.Tensor:
    """Which tokens of the prefix and of the row each token of the row sees, (n, prefix + n)."""
    import torch

    place = torch.arange(len(visible_until), device=visible_until.device)
    within = (place <= place[:, None]) & (place[:, None] < visible_until)
    return torch.cat([within.new_ones(len(visible_until), prefix), within], dim=1)


def additive(mask: torch.Tensor) -> torch.Tensor:
    """The mask for eager attention, which adds it to the scores."""
    import torch

    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
