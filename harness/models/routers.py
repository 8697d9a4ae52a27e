"""What the routers of a mixture of experts choose, read with hooks while a transformers model runs.

transformers gives every mixture one shape: a block has a child ``experts`` and, beside it, the router, ``gate`` or
``router``. The router returns the scores of all experts and, in most models, the chosen ones; in the others the block
chooses and passes the choice to ``experts``. Libraries that replace a block, and transformers before version 5, keep
the experts in a list: then the chosen are the ``top_k`` highest scores, if the rows that each expert gets confirm it.
Whatever fits none of these is reported, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.capability import Routed, SeeRouted
from harness.core.layers import name_from_layers
from harness.errors import UnsupportedError
from harness.models.scope import holds_experts

if TYPE_CHECKING:
    import torch

EXPERTS = "experts"
UNREADABLE = "its routers cannot be read: they are not built as transformers builds a mixture's"
PROBE_TOKENS = 32
_ROUTERS = ("gate", "router")
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Block:
    """``top_k`` is the block's own if its experts are a list, which nothing calls."""

    name: str
    router: Any
    experts: Any
    top_k: int | None


def readable_blocks(
    model: Any, vocabulary: int, read: Callable[[torch.Tensor], object] | None = None
) -> tuple[str, ...]:
    """The names of a model's mixture blocks, in order, after a pass over a few tokens; empty for a dense model.

    ``read`` passes tokens (1, length) through a model that cannot simply be called. Raises UnsupportedError if it has
    experts, and what their routers do cannot be read.
    """
    import torch

    blocks, seen, rows = _blocks(model), {}, {}

    def count(name: str, routed: Routed) -> None:
        seen[name] = torch.bincount(routed.chosen.flatten(), minlength=routed.scores.shape[-1]).tolist()

    def decode(tokens: torch.Tensor) -> object:
        return model.get_decoder()(input_ids=tokens.to(model.device), use_cache=False)

    tokens = torch.arange(PROBE_TOKENS).remainder(vocabulary).unsqueeze(0)
    if blocks:
        with torch.inference_mode(), watching_routers(model, count), ExitStack() as stack:
            for block in blocks:
                if block.top_k is not None:
                    rows[block.name] = _counted_rows(block.experts, stack)
            (read or decode)(tokens)
    confirmed = all(seen.get(name) == found for name, found in rows.items())
    if list(seen) != [block.name for block in blocks] or not confirmed or (not blocks and _has_experts(model)):
        raise UnsupportedError(UNREADABLE)
    return tuple(seen)


def _counted_rows(experts: Any, stack: ExitStack) -> list[int]:
    """How many rows each expert of a list gets, counted while the model runs."""
    rows = [0] * len(experts)

    def count(number: int, inputs: tuple[Any, ...]) -> None:
        rows[number] += inputs[0].numel() // inputs[0].shape[-1]

    for number, expert in enumerate(experts):
        hook = expert.register_forward_pre_hook(lambda module, inputs, number=number: count(number, inputs))
        stack.callback(hook.remove)
    return rows


def expert_parameters(model: Any) -> Mapping[str, int]:
    """The parameters of all experts of each block, by the block's name."""
    return {block.name: sum(each.numel() for each in block.experts.parameters()) for block in _blocks(model)}


@contextmanager
def watching_routers(model: Any, see: SeeRouted) -> Iterator[None]:
    """Inside this context, ``see`` gets what each router does with the tokens of each forward pass.

    Raises UnsupportedError, from the forward pass, for a block whose choice cannot be read.
    """
    with ExitStack() as stack:
        for block in _blocks(model):
            _watch(block, see, stack)
        yield


def log_distribution(scores: torch.Tensor) -> torch.Tensor:
    """Logarithms of the router's distribution over the experts, float64, from its logits or its probabilities.

    The distribution is the softmax of the logits, for every router: one that weighs its experts by sigmoids
    (DeepSeek-V3) orders them in the same way.
    """
    wide = scores.double()
    sums = wide.sum(dim=-1)
    if bool((wide >= 0).all()) and bool(((sums - 1).abs() <= _SUM_TOLERANCE).all()):
        return (wide / sums.unsqueeze(-1)).log()
    return wide.log_softmax(dim=-1)


def _has_experts(model: Any) -> bool:
    return any(holds_experts(name, parameter.ndim) for name, parameter in model.named_parameters())


def _blocks(model: Any) -> list[_Block]:
    import torch

    found = []
    for name, module in model.named_modules():
        children = dict(module.named_children())
        router = next((children[each] for each in _ROUTERS if each in children), None)
        place = name_from_layers(name)
        if EXPERTS in children and router is not None and place is not None:
            listed = isinstance(children[EXPERTS], torch.nn.ModuleList)
            found.append(_Block(place, router, children[EXPERTS], getattr(module, "top_k", None) if listed else None))
    return found


def _watch(block: _Block, see: SeeRouted, stack: ExitStack) -> None:
    """The router runs before its experts: it leaves its scores here if it does not itself say which it chose."""
    undecided: list[torch.Tensor] = []

    def after_router(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = _tensors(output)
        chosen = next((each for each in tensors if _is_choice(each)), None)
        floating = [each for each in tensors if each.is_floating_point()]
        if not floating:
            raise UnsupportedError(f"{block.name}: its router, a {type(module).__name__}, returns no scores")
        scores = max(floating, key=lambda each: each.shape[-1])  # weights of the chosen experts are fewer
        scores = scores.detach().reshape(-1, scores.shape[-1])
        if chosen is None and block.top_k is not None:
            chosen = scores.topk(block.top_k).indices
        if chosen is None:
            undecided[:] = [scores]
        else:
            see(block.name, _routed(block, scores, chosen))

    def before_experts(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not undecided:
            return
        scores = undecided.pop()
        chosen = next((each for each in _tensors((*inputs, *named.values())) if _is_choice(each)), None)
        if chosen is None:
            raise UnsupportedError(f"{block.name}: which experts it chooses cannot be read from its parts")
        see(block.name, _routed(block, scores, chosen))

    stack.callback(block.router.register_forward_hook(after_router).remove)
    stack.callback(block.experts.register_forward_pre_hook(before_experts, with_kwargs=True).remove)


def _routed(block: _Block, scores: torch.Tensor, chosen: torch.Tensor) -> Routed:
    """Raises UnsupportedError for the weights of the chosen experts in place of the scores of all."""
    chosen = chosen.detach().reshape(len(scores), -1)
    if chosen.shape[-1] >= scores.shape[-1]:
        raise UnsupportedError(f"{block.name}: its router returns no more scores than it chooses experts")
    return Routed(scores, chosen)


def _tensors(given: Any) -> list[torch.Tensor]:
    import torch

    several: Iterable[Any] = given if isinstance(given, tuple | list) else (given,)
    return [each for each in several if isinstance(each, torch.Tensor)]


def _is_choice(tensor: torch.Tensor) -> bool:
    import torch

    return tensor.dtype in (torch.int64, torch.int32) and tensor.ndim >= 2
