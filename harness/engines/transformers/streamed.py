"""The transformers engine's models with only one part in memory at a time: the same states, and no speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.core.capability import HeadWeights, Product, ScaleCheck, SeeRouted, StoredTensor, StreamingCost
from harness.core.engine import LoadRequest, Streaming
from harness.core.identity import DecodeMode
from harness.engines.transformers import engine
from harness.errors import UnsupportedError
from harness.models.kernels import products
from harness.models.loading import device_map, load_tokenizer
from harness.models.scales import check_loaded
from harness.models.streaming.forwards import Forwards, states_budget
from harness.models.streaming.parts import ModelPart, Parts
from harness.numerics.logits import finish

if TYPE_CHECKING:
    import torch

PICTURED_ROWS = (1, 1 << 14)
"""The numbers of rows whose kernels are looked up in each layer: the fewest and the most."""


class StreamedModel:
    """A causal language model whose parts are read from disk for every pass.

    ``hidden`` and ``logits`` cost a whole pass for one batch; ``hidden_each`` makes one for many.
    """

    def __init__(self, request: LoadRequest, streaming: Streaming, tokenizer: Any | None) -> None:
        import torch

        self._parts = Parts(request)
        self._forwards = Forwards(self._parts, states_budget(streaming, self._parts))
        self._model = model = self._parts.model
        self._head = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._scale, self._softcap = engine.logit_scale(config), getattr(config, "final_logit_softcapping", None)
        self.tokenizer = tokenizer
        self.vocabulary = int(config.vocab_size)
        self.device = device_map(request.device, request.gpus)
        self.devices = (self.device,)
        self.threads = torch.get_num_threads()
        self.attention = str(getattr(config, "_attn_implementation", None))
        self.context_length = engine.context_length(config)
        self.cache_description: str | None = None
        self.factored = False
        self.states_dtype: str | None = None
        self._router_blocks: Sequence[str] | None = None
        self._freed: set[str] = set()
        self._loaded_each = 0
        self._pictures: dict[str, _Picture] = {}
        self._outside = [
            entry
            for name, module in model.named_modules()
            if module._buffers and self._parts.owner(f"{name}.buffer") is None
            for entry in self._ledger(module, name)
            if entry.name.rpartition(".")[0] == name
        ]
        self._products: dict[int, dict[str, Product]] = {rows: {} for rows in PICTURED_ROWS}
        self._parts.on_load, self._parts.on_free = self._look_at, self._look_at_kernels
        for name in sorted(self._parts.loaded):
            self._look_at(self._parts.parts[name])

    def probe_head(self) -> None:
        import torch

        if self._head is None:
            return
        tokens = engine.probe_tokens(self.vocabulary)
        with torch.inference_mode():
            try:
                states, whole = self._run([partial(self._states, tokens), partial(self._logits, tokens)])
                self.states_dtype = engine.dtype_name(states)
                factored = self.head(states)
            except (AttributeError, TypeError):  # a model without a separate decoder
                return
        self.factored = engine.is_same(factored, whole)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        return next(self.hidden_each([tokens]))

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return next(self.logits_each([tokens]))

    own_cache_logits = logits

    def hidden_each(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        return self._run([partial(self._states, tokens) for tokens in batches])

    def logits_each(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        return self._run([partial(self._logits, tokens) for tokens in batches])

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        self._load_head()
        return finish(self._head(hidden), self._scale, self._softcap)

    def output_embedding(self) -> HeadWeights | None:
        import torch

        if not self.factored or type(self._head) is not torch.nn.Linear:
            return None
        self._load_head()
        if type(self._head.weight) is not torch.nn.Parameter:
            return None
        return HeadWeights(self._head.weight, self._head.bias, self._scale, self._softcap)

    def load_each(self) -> None:
        for part in self._parts.parts.values():
            self._parts.load(part.name)
            self._parts.free(part.name)
        self._loaded_each += 1

    def weight_ledger(self) -> Sequence[StoredTensor]:
        """Of each part as it was when it was first loaded. A part that no pass has needed yet is loaded for it."""
        for part in self._parts.parts.values():
            if part.name not in self._pictures:
                self._parts.load(part.name)
                self._parts.free(part.name)
        order = {name: place for place, (name, _) in enumerate(self._model.named_modules())}
        found = [*self._outside, *(entry for picture in self._pictures.values() for entry in picture.ledger)]
        return sorted(found, key=lambda entry: order.get(entry.name.rpartition(".")[0], 0))

    def running_bytes(self) -> int:
        return sum(entry.value_bytes + entry.scale_bytes for entry in self.weight_ledger())

    def check_scales(self) -> ScaleCheck:
        self.weight_ledger()
        return sum((picture.scales for picture in self._pictures.values()), ScaleCheck())

    def kernels(self) -> Mapping[str, int]:
        self.weight_ledger()
        names: dict[str, int] = {}
        for picture in self._pictures.values():
            for name, count in picture.kernels.items():
                names[name] = names.get(name, 0) + count
        return names

    def products(self, rows: int, mode: DecodeMode = "eager") -> Mapping[str, Product]:
        self.weight_ledger()
        return self._products[min(PICTURED_ROWS, key=lambda each: abs(each - rows))]

    def router_blocks(self) -> Sequence[str]:
        from harness.models.routers import readable_blocks

        if self._router_blocks is None:
            self._router_blocks = readable_blocks(self._model, self.vocabulary, self.hidden)
        return self._router_blocks

    def watching_routers(self, see: SeeRouted) -> AbstractContextManager[None]:
        """``see`` gets all texts of a pass from one layer before any from the next."""
        from harness.models.routers import watching_routers

        return watching_routers(self._model, see)

    def streaming_cost(self) -> StreamingCost:
        reader = self._parts.reader
        return StreamingCost(
            parts=len(self._parts.parts),
            largest_part_bytes=self._parts.largest_bytes,
            checkpoint_bytes=self._parts.checkpoint_bytes,
            bytes_read=reader.bytes_read,
            read_s=reader.read_s,
            passes=self._forwards.passes + self._loaded_each,
            spilled_bytes=self._forwards.spilled_bytes,
        )

    def sync(self) -> None:
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        import gc

        self._parts.close()
        self._model = self._head = self._parts = self._forwards = None  # type: ignore[assignment]
        gc.collect()
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()

    def _states(self, tokens: torch.Tensor) -> torch.Tensor:
        inputs = tokens.to(self.device)
        states: torch.Tensor = self._model.get_decoder()(input_ids=inputs, use_cache=False).last_hidden_state
        return states

    def _logits(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(input_ids=tokens.to(self.device), use_cache=False).logits
        return logits

    def _run(self, calls: Sequence[Callable[[], torch.Tensor]]) -> Iterator[torch.Tensor]:
        part = self._parts.part_of(self._head)
        if part is not None:
            self._parts.free(part.name)
        return self._forwards.run(calls)

    def _load_head(self) -> None:
        part = self._parts.part_of(self._head)
        if part is not None:
            self._parts.load(part.name)

    def _look_at(self, part: ModelPart) -> None:
        """Keeps what is to be known of a part while it is loaded for the first time."""
        if part.name in self._pictures:
            return
        root, name = part.module, part.name
        own = dict(root.named_modules(prefix=name)) if part.is_layer else {name: root}
        self._pictures[name] = _Picture(
            [
                replace(entry, value_bytes=0, scale_bytes=0, tied=True) if self._parts.is_tied(entry.name) else entry
                for entry in self._ledger(root, name)
                if entry.name.rpartition(".")[0] in own
            ],
            engine.kernel_names(own),
            check_loaded(own),
        )

    def _look_at_kernels(self, part: ModelPart) -> None:
        """Keeps how a layer multiplies, which some libraries choose in its first product."""
        if part.is_layer and self._forwards.passes and part.name not in self._freed:
            self._freed.add(part.name)
            for rows, found in self._products.items():
                found |= products(part.module, self._model.dtype, rows, prefix=part.name)

    def _ledger(self, module: torch.nn.Module, name: str) -> Sequence[StoredTensor]:
        from harness.numerics.storage import ledger

        return ledger(module, self._model.get_input_embeddings(), self._head, name)


@dataclass(frozen=True)
class _Picture:
    """What was seen of a part when it was first loaded: its stored tensors, its linear layers' classes, its scales."""

    ledger: Sequence[StoredTensor]
    kernels: Mapping[str, int]
    scales: ScaleCheck


def load(request: LoadRequest, streaming: Streaming) -> StreamedModel:
    """Raises UnsupportedError for a model that cannot be streamed, with the reason."""
    if request.gpus > 1:
        raise UnsupportedError("a streamed model computes on one device; leave 'devices' out")
    return StreamedModel(request, streaming, load_tokenizer(request))
