"""The transformers engine: PyTorch models on a CPU or one GPU, in eager mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.contracts import Engine, HeadWeights, KernelFamily, LoadedModel, LoadRequest, StoredTensor
from harness.models.loading import load_transformers
from harness.numerics.logits import finish

if TYPE_CHECKING:
    import torch

PROBE_TOKENS = 16
PROBE_TOLERANCE = 1e-5
"""Largest difference, relative to the largest logit, at which head(hidden(x)) still is the model's own logits."""


class TransformersModel:
    """A causal language model of transformers behind the LoadedModel protocol."""

    def __init__(self, model: Any, tokenizer: Any | None) -> None:
        self._model = model
        self._head = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._scale = _logit_scale(config)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.tokenizer = tokenizer
        self.vocabulary = int(config.vocab_size)
        self.device = str(model.device)
        self._stored = self._ledger()  # before the first forward, in which some libraries repack their weights
        self.attention = str(getattr(config, "_attn_implementation", None))
        self.factored = False

    def probe(self) -> None:
        self.factored = self._head is not None and self._is_factored()

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        decoder = self._model.get_decoder()
        return decoder(input_ids=tokens.to(self._model.device), use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return finish(self._head(hidden), self._scale, self._softcap)

    def output_embedding(self) -> HeadWeights | None:
        import torch

        if not self.factored or type(self._head) is not torch.nn.Linear:
            return None
        if type(self._head.weight) is not torch.nn.Parameter:
            return None
        return HeadWeights(self._head.weight, self._head.bias, self._scale, self._softcap)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._model(input_ids=tokens.to(self._model.device), use_cache=False).logits  # type: ignore[no-any-return]

    def prefill(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return self._step(tokens, None)

    def decode(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        return self._step(tokens, cache)

    def _step(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        inputs = tokens.to(self._model.device)
        output = self._model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1], output.past_key_values

    def sync(self) -> None:
        import torch

        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)

    def weight_ledger(self) -> Sequence[StoredTensor]:
        return self._stored

    def running_bytes(self) -> int:
        return sum(entry.value_bytes + entry.scale_bytes for entry in self._ledger())

    def _ledger(self) -> Sequence[StoredTensor]:
        from harness.numerics.storage import ledger

        return ledger(self._model, self._model.get_input_embeddings(), self._head)

    def kernels(self) -> Mapping[str, int]:
        from harness.models.scope import in_decoder

        names: Counter[str] = Counter()
        for name, module in self._model.named_modules():
            if "Linear" in type(module).__name__ and in_decoder(f"{name}.weight", 2):
                weight = getattr(module, "weight", None)
                plain = not hasattr(weight, "dtype") or type(weight).__name__ == "Parameter"
                names[type(module).__name__ + ("" if plain else f" of {type(weight).__name__}")] += 1
        return dict(names)

    def families(self) -> Mapping[KernelFamily, int]:
        from harness.models.kernels import family
        from harness.models.scope import in_decoder

        found: Counter[KernelFamily] = Counter()
        for name, module in self._model.named_modules():
            if in_decoder(f"{name}.weight", 2) and (kind := family(module)) is not None:
                found[kind] += 1
        return dict(found)

    def _is_factored(self) -> bool:
        """Whether head(hidden(x)) is the model's own logits, on a few tokens."""
        import torch

        tokens = torch.arange(PROBE_TOKENS).remainder(self.vocabulary).unsqueeze(0)
        with torch.inference_mode():
            try:
                factored = self.head(self.hidden(tokens))
            except (AttributeError, TypeError):  # a model without a separate decoder
                return False
            whole = self.logits(tokens)
        if factored.shape != whole.shape:
            return False
        difference = (factored.float() - whole.float()).abs().max()
        return bool(difference <= PROBE_TOLERANCE * whole.float().abs().max())


def _logit_scale(config: Any) -> float:
    if getattr(config, "logits_scaling", None):
        return 1.0 / float(config.logits_scaling)
    return float(getattr(config, "logit_scale", None) or 1.0)


def imports() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def load(request: LoadRequest) -> LoadedModel:
    """Loads safetensors weights only. Raises what transformers raises: the worker sorts it."""
    from transformers import AutoTokenizer

    model = request.read(request).eval() if request.read else load_transformers(request)
    tokenizer = None
    if any(request.path.glob("tokenizer*")):
        tokenizer = AutoTokenizer.from_pretrained(request.path, trust_remote_code=request.trust_remote_code)
    return TransformersModel(model, tokenizer)


TRANSFORMERS = Engine(
    name="transformers",
    version=1,
    summary="PyTorch models through transformers, eager mode",
    imports=imports,
    load=load,
    packages=("torch", "transformers", "tokenizers", "safetensors", "accelerate"),
)
