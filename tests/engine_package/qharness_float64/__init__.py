"""Transformers' models computed in float64: what rounding in the usual dtype changes, whatever the weights are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.capability import Product, StoredTensor
from harness.core.engine import Engine, EngineParams, LoadRequest
from harness.core.format import TRANSFORMERS_FORMAT
from harness.core.identity import DecodeMode

if TYPE_CHECKING:
    import torch


class Float64Params(EngineParams):
    """``round_logits`` rounds the logits to float32, as other engines return them."""

    round_logits: bool = False


class Float64Model:
    """Scores text, and nothing else: its one capability is ``logits``."""

    cache_description = None

    def __init__(self, model: Any, tokenizer: Any, round_logits: bool) -> None:
        import torch

        from harness.numerics.storage import ledger

        self._model, self._round_logits = model, round_logits
        self._ledger = ledger(model, model.get_input_embeddings(), model.get_output_embeddings())
        self.tokenizer = tokenizer
        self.vocabulary: int = model.config.vocab_size
        self.context_length: int | None = getattr(model.config, "max_position_embeddings", None)
        self.device, self.attention, self.threads = str(model.device), "eager in float64", torch.get_num_threads()

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(input_ids=tokens.to(self.device), use_cache=False).logits
        return logits.float() if self._round_logits else logits

    own_cache_logits = logits  # it has no other key-value cache

    def weight_ledger(self) -> Sequence[StoredTensor]:
        return self._ledger

    def running_bytes(self) -> int:
        return sum(entry.value_bytes + entry.scale_bytes for entry in self._ledger)

    def kernels(self) -> Mapping[str, int]:
        return Counter(entry.storage for entry in self._ledger if entry.role == "linear")

    def products(self, rows: int, mode: DecodeMode = "eager") -> Mapping[str, Product]:
        linears = (entry for entry in self._ledger if entry.role == "linear")
        return {entry.name.removesuffix(".weight"): Product("plain") for entry in linears}

    def sync(self) -> None:
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        self._model = None


def imports() -> None:
    import transformers  # noqa: F401


def load(request: LoadRequest, params: Float64Params) -> Float64Model:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = {"dtype": torch.float64, "device_map": request.device, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(request.path, use_safetensors=True, **plain).eval()
    tokenizer = AutoTokenizer.from_pretrained(request.path) if any(request.path.glob("tokenizer*")) else None
    return Float64Model(model, tokenizer, params.round_logits)


FLOAT64 = Engine(
    name="float64",
    version=1,
    summary="transformers' models computed in float64; logits alone",
    capabilities=frozenset({"logits"}),
    reads=(TRANSFORMERS_FORMAT,),
    imports=imports,
    load=load,
    params=Float64Params,
    packages=("torch", "transformers"),
)
