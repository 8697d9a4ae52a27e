"""The transformers engine: PyTorch models on a CPU, on one GPU, or spread over several."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.core.capability import Choose, Decoder, HeadWeights, Product, ScaleCheck, SeeRouted, Stop, StoredTensor
from harness.core.engine import Engine, EngineParams, LoadRequest
from harness.core.format import LOAD_CONFIG_FORMAT, TRANSFORMERS_FORMAT
from harness.core.identity import DecodeMode, KvCache
from harness.engines.transformers import prefix_cache
from harness.engines.transformers.compiled import compiled
from harness.engines.transformers.kv_cache import CHUNK_TOKENS, PACKAGES, CacheMaker, cache_maker
from harness.errors import UnsupportedError
from harness.models.loading import auto_class, load_tokenizer, load_transformers
from harness.numerics.logits import finish

if TYPE_CHECKING:
    import torch

    from harness.engines.transformers.streamed import StreamedModel

PROBE_TOKENS = 16
PROBE_TOLERANCE = 1e-5
"""Largest difference, relative to the largest logit, at which head(hidden(x)) still counts as the model's logits."""


class TransformersModel:
    """A causal language model from transformers, with every capability."""

    def __init__(self, model: Any, tokenizer: Any | None, kv_cache: KvCache = "model") -> None:
        import torch

        self._model = model
        self._new_cache: CacheMaker | None = None
        self.cache_description: str | None = None
        if kv_cache != "model":
            self._new_cache, self.cache_description = cache_maker(kv_cache, model.config)
        self._head = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._scale = logit_scale(config)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.tokenizer = tokenizer
        self.vocabulary = int(config.vocab_size)
        self.device = str(model.device)
        own = [str(model.device), *(str(parameter.device) for parameter in model.parameters())]
        self.devices = tuple(dict.fromkeys(own))
        self.threads = torch.get_num_threads()
        self.states_dtype: str | None = None
        self._stored = self._ledger()  # before the first forward, in which some libraries repack their weights
        self.attention = str(getattr(config, "_attn_implementation", None))
        self.context_length = context_length(config)
        self.factored = False
        self._can_branch: bool | None = None
        self._router_blocks: Sequence[str] | None = None

    def probe_head(self) -> None:
        self.factored = self._head is not None and self._is_factored()

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        decoder = self._model.get_decoder()
        return self._read(lambda **inputs: self._first(decoder(**inputs).last_hidden_state), tokens)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return finish(self._first(self._head(hidden)), self._scale, self._softcap)

    def _first(self, states: torch.Tensor) -> torch.Tensor:
        """On the device that the model's inputs are on, where a model on several devices leaves them elsewhere."""
        return states.to(self._model.device)

    def output_embedding(self) -> HeadWeights | None:
        import torch

        if not self.factored or type(self._head) is not torch.nn.Linear:
            return None
        if type(self._head.weight) is not torch.nn.Parameter:
            return None
        return HeadWeights(self._head.weight, self._head.bias, self._scale, self._softcap)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._read(lambda **inputs: self._model(**inputs).logits, tokens)

    def own_cache_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._model(input_ids=tokens.to(self._model.device), use_cache=False).logits  # type: ignore[no-any-return]

    def _read(self, forward: Callable[..., torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """Reads a whole text at once, or in chunks on top of the cache if it is not the model's own."""
        import torch

        inputs = tokens.to(self._model.device)
        if self._new_cache is None:
            return forward(input_ids=inputs, use_cache=False)
        cache = self._new_cache()
        chunks = torch.split(inputs, CHUNK_TOKENS, dim=1)
        return torch.cat([forward(input_ids=each, past_key_values=cache, use_cache=True) for each in chunks], dim=1)

    def can_branch(self) -> bool:
        if self._can_branch is None:
            known = self._new_cache is None and self.factored and self.attention in ("sdpa", "eager")
            self._can_branch = known and prefix_cache.sees_all(self._model.config) and prefix_cache.branches(self)
        return self._can_branch

    def extend_prefix(self, tokens: torch.Tensor, prefix: Any | None) -> tuple[torch.Tensor, Any]:
        inputs = tokens.to(self._model.device).unsqueeze(0)
        output = self._model.get_decoder()(input_ids=inputs, past_key_values=prefix_cache.fork(prefix), use_cache=True)
        return self._first(output.last_hidden_state[0]), output.past_key_values

    def forward_tree(self, tokens: torch.Tensor, visible_until: torch.Tensor, prefix: Any | None) -> torch.Tensor:
        length = prefix.get_seq_length() if prefix is not None else 0
        mask = prefix_cache.tree_mask(visible_until.to(self._model.device), length)
        output = self._model.get_decoder()(
            input_ids=tokens.to(self._model.device).unsqueeze(0),
            position_ids=mask.sum(dim=1).sub(1).unsqueeze(0),
            attention_mask=mask[None, None] if self.attention == "sdpa" else prefix_cache.additive(mask)[None, None],
            past_key_values=prefix_cache.fork(prefix),
            use_cache=prefix is not None,
        )
        return self._first(output.last_hidden_state[0])

    def generate(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        prefix: Any | None,
        stop: Stop,
        choose: Choose | None = None,
        **settings: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        prompts = tokens.to(self._model.device)
        if choose is not None:
            chosen = [lambda ids, scores: choose(ids.shape[1] - prompts.shape[1], scores)]
            settings["logits_processor"] = LogitsProcessorList(chosen)
        output = self._model.generate(
            input_ids=prompts,
            attention_mask=mask.to(self._model.device),
            past_key_values=prefix_cache.fork(prefix) if prefix is not None else self._empty(),
            stopping_criteria=StoppingCriteriaList([lambda ids, scores, **_: stop(ids[:, prompts.shape[1] :])]),
            use_cache=True,
            return_dict_in_generate=True,
            **settings,
        )
        written = output.sequences[:, prompts.shape[1] :]
        eos = self._model.generation_config.eos_token_id
        ends = torch.tensor([] if eos is None else eos, device=written.device, dtype=torch.int64)
        return written, torch.isin(written, ends).any(dim=1), getattr(output, "past_key_values", None)

    def select_prefix(self, prefix: Any, rows: torch.Tensor, length: int) -> Any:
        return prefix_cache.selected(prefix, rows, length)

    def join_prefixes(self, prefixes: Sequence[Any]) -> Any:
        return prefix_cache.joined(prefixes)

    def prefill(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return self._step(tokens, self._empty())

    def decode(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        return self._step(tokens, cache)

    def decoder(self, mode: DecodeMode, prompt: torch.Tensor, new_tokens: int) -> AbstractContextManager[Decoder]:
        if mode == "eager":
            return nullcontext(self)
        if self._new_cache is not None:
            raise UnsupportedError("compiled decoding needs a static key-value cache, and one of fewer bits grows")
        return compiled(self, self._model, prompt, new_tokens)

    def _empty(self) -> Any | None:
        """An empty cache; None if the model makes its own."""
        return self._new_cache() if self._new_cache is not None else None

    def _step(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        inputs = tokens.to(self._model.device)
        output = self._model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1], output.past_key_values

    def sync(self) -> None:
        import torch

        for device in self.devices:
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)

    def close(self) -> None:
        import gc

        self._model = self._head = self._new_cache = None
        gc.collect()  # the modules of a model refer to one another
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()

    def weight_ledger(self) -> Sequence[StoredTensor]:
        return self._stored

    def running_bytes(self) -> int:
        return sum(entry.value_bytes + entry.scale_bytes for entry in self._ledger())

    def _ledger(self) -> Sequence[StoredTensor]:
        from harness.numerics.storage import ledger

        return ledger(self._model, self._model.get_input_embeddings(), self._head)

    def check_scales(self) -> ScaleCheck:
        from harness.models.scales import check_loaded

        return check_loaded(dict(self._model.named_modules()))

    def kernels(self) -> Mapping[str, int]:
        return kernel_names(dict(self._model.named_modules()))

    def products(self, rows: int, mode: DecodeMode = "eager") -> Mapping[str, Product]:
        from harness.models.kernels import products

        return products(self._model, self._model.dtype, rows, mode)

    def router_blocks(self) -> Sequence[str]:
        from harness.models.routers import readable_blocks

        if self._router_blocks is None:
            self._router_blocks = readable_blocks(self._model, self.vocabulary)
        return self._router_blocks

    def watching_routers(self, see: SeeRouted) -> AbstractContextManager[None]:
        from harness.models.routers import watching_routers

        return watching_routers(self._model, see)

    def _is_factored(self) -> bool:
        """Whether head(hidden(x)) equals the model's own logits for a few tokens."""
        import torch

        tokens = probe_tokens(self.vocabulary)
        with torch.inference_mode():
            try:
                states = self.hidden(tokens)
                self.states_dtype = dtype_name(states)
                factored = self.head(states)
            except (AttributeError, TypeError):  # a model without a separate decoder
                return False
            return is_same(factored, self.logits(tokens))


def probe_tokens(vocabulary: int) -> torch.Tensor:
    """A few tokens (1, length) to see whether a model is its head applied to its hidden states."""
    import torch

    return torch.arange(PROBE_TOKENS).remainder(vocabulary).unsqueeze(0)


def dtype_name(tensor: torch.Tensor) -> str:
    """Without the name of its library."""
    return str(tensor.dtype).removeprefix("torch.")


def is_same(factored: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether head(hidden(x)) counts as the model's own logits."""
    if factored.shape != whole.shape:
        return False
    difference = (factored.float() - whole.float()).abs().max()
    return bool(difference <= PROBE_TOLERANCE * whole.float().abs().max())


def kernel_names(modules: Mapping[str, Any]) -> Mapping[str, int]:
    """The number of linear layers of the decoder among these modules, by class of module and weight."""
    from harness.models.scope import in_decoder
    from harness.models.unfuse import is_fused

    names: Counter[str] = Counter()
    for name, module in modules.items():
        if "Linear" in type(module).__name__ and in_decoder(f"{name}.weight", 2):
            weight = getattr(module, "weight", None)
            plain = not hasattr(weight, "dtype") or type(weight).__name__ == "Parameter"
            names[type(module).__name__ + ("" if plain else f" of {type(weight).__name__}")] += 1
        elif is_fused(module):  # transformers has several products for fused experts
            names[f"{type(module).__name__} by {module.config._experts_implementation}"] += 1
    return dict(names)


def context_length(config: Any) -> int | None:
    names = ("n_positions", "max_position_embeddings", "n_ctx")
    found = (getattr(config, name, None) for name in names)
    return next((int(length) for length in found if length is not None), None)


def logit_scale(config: Any) -> float:
    if getattr(config, "logits_scaling", None):
        return 1.0 / float(config.logits_scaling)
    return float(getattr(config, "logit_scale", None) or 1.0)


def imports() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def import_model(checkpoint: Path) -> None:
    """Imports the model's class, as loading would; nothing if the checkpoint brings its own, or none is known."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with suppress(OSError, ValueError, AttributeError):  # loading it says what is wrong with the file
        known = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        if known.get("auto_map") is None and known.get("model_type") in CONFIG_MAPPING:
            kind = CONFIG_MAPPING[known["model_type"]]
            auto_class(kind)._model_mapping.get(kind, None)


class TransformersParams(EngineParams):
    """``attention`` is the implementation that runs; null is the recipe's."""

    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = None


DEFAULTS = TransformersParams()


def load(request: LoadRequest, params: TransformersParams = DEFAULTS) -> TransformersModel | StreamedModel:
    """Loads safetensors weights only. Raises what transformers raises; the worker classifies it."""
    if params.attention is not None:
        request = replace(request, attention=params.attention)
    if request.streaming is not None:
        from harness.engines.transformers import streamed

        return streamed.load(request, request.streaming)
    model = request.read(request).eval() if request.read else load_transformers(request)
    return TransformersModel(model, load_tokenizer(request), request.kv_cache)


TRANSFORMERS = Engine(
    name="transformers",
    version=1,
    summary="PyTorch models through transformers; decoding layer by layer or compiled",
    capabilities=frozenset({"logits", "factored", "branching", "decodes", "generates"}),
    streams=frozenset({"logits", "factored"}),
    reads=(TRANSFORMERS_FORMAT, LOAD_CONFIG_FORMAT),
    imports=imports,
    import_model=import_model,
    load=load,
    params=TransformersParams,
    gpus=lambda params, devices: devices,
    packages=("torch", "transformers", "tokenizers", "safetensors", "accelerate"),
    caches=PACKAGES,
    decode_modes={"eager": tuple(PACKAGES), "compiled": ("model",)},
)
