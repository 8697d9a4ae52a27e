"""Pasts of the transformers engine: caches forked, chosen from and joined, and rows that branch after one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from harness.core.engine import LoadedModel

PROBE_TOKENS = 16
BRANCH_TOLERANCE = 0.2
"""Largest difference of branches from the same tokens alone, relative to what it would change not to branch.

Rounding makes up to 0.1 of it in bfloat16, positions that ignore the branches 0.3 and more.
"""


def branches(model: LoadedModel) -> bool:
    """Whether two branches of one stem, with and without a past, give what each gives alone."""
    import torch

    tokens = torch.arange(PROBE_TOKENS).remainder(model.vocabulary)
    stem, one, other = tokens[:6], tokens[6:11], tokens[11:]
    reach = torch.tensor([16] * 6 + [11] * 5 + [16] * 5)
    try:
        with torch.inference_mode():
            alone = model.hidden(torch.stack([torch.cat([stem, one]), torch.cat([stem, other])]))
            expected = torch.cat([alone[0], alone[1, 6:]])
            changed = (model.hidden(tokens[None])[0] - expected).float().norm()
            _, past = model.extend(stem, None)
            grown = [model.grow(tokens[6:], reach[6:] - 6, past) for _ in range(2)]  # the past must stay as it is
            found = [model.grow(tokens, reach, None), *(torch.cat([alone[0, :6], rest]) for rest in grown)]
    except (AttributeError, TypeError, ValueError, RuntimeError):  # a model that takes no such mask or past
        return False
    return all(bool((each - expected).float().norm() <= BRANCH_TOLERANCE * changed) for each in found)


def sees_all(config: Any) -> bool:
    """Whether every layer attends to all tokens before: a window would count those of other branches."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds:
        return set(kinds) == {"full_attention"}
    return not getattr(text, "sliding_window", None)


def fork(past: Any | None) -> Any | None:
    """A cache with the same tensors, which grows without changing the old one."""
    if past is None:
        return None
    forked = copy.copy(past)
    forked.layers = [copy.copy(layer) for layer in past.layers]
    return forked


def selected(past: Any, rows: torch.Tensor, length: int) -> Any:
    """The last ``length`` tokens of a past, of these rows of its batch."""
    return _rebuilt(past, lambda layer, kind: getattr(past.layers[layer], kind)[rows, :, -length:])


def joined(pasts: Sequence[Any]) -> Any:
    """Pasts as one batch, the shorter ones padded on the left."""
    import torch

    longest = max(past.get_seq_length() for past in pasts)

    def states(layer: int, kind: str) -> torch.Tensor:
        parts = [getattr(past.layers[layer], kind) for past in pasts]
        return torch.cat([torch.nn.functional.pad(part, (0, 0, longest - part.shape[-2], 0)) for part in parts])

    return _rebuilt(pasts[0], states)


def _rebuilt(past: Any, states: Callable[[int, str], torch.Tensor]) -> Any:
    """A cache like another one, with states (batch, heads, length, width) found by layer and kind."""
    rebuilt = fork(past)
    for index, layer in enumerate(rebuilt.layers):  # type: ignore[union-attr]
        layer.keys, layer.values = states(index, "keys"), states(index, "values")
    return rebuilt


def seen(reach: torch.Tensor, past: int) -> torch.Tensor:
    """Which of the past and of the row each token sees, (n, past + n)."""
    import torch

    place = torch.arange(len(reach), device=reach.device)
    within = (place <= place[:, None]) & (place[:, None] < reach)
    return torch.cat([within.new_ones(len(reach), past), within], dim=1)


def added(seen: torch.Tensor) -> torch.Tensor:
    """The mask as what attention that is written out adds to its scores."""
    import torch

    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)
