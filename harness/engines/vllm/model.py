"""A model that vLLM has loaded, with the harness's capabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.core.capability import (
    Arithmetic,
    CachePool,
    Decoder,
    HeadWeights,
    Product,
    Prompt,
    ScaleCheck,
    StoredTensor,
)
from harness.core.engine import LoadRequest
from harness.core.identity import DecodeMode
from harness.engines.vllm.kernels import CheckpointWeights, Description
from harness.engines.vllm.runtime import Batch, VllmRuntime
from harness.errors import HarnessError, InvalidRunError, UnsupportedError
from harness.tasks.sampling import request_seed

if TYPE_CHECKING:
    import torch

PROBE_TOKENS = 16
PROBE_NAT = {"float32": 1e-3}
"""Largest difference between vLLM's own log-probabilities and those from its hidden states and head, by dtype."""
OTHER_PROBE_NAT = 0.1
COMPILING = "it compiles when it loads: leave decode_mode out, and write engines: [{vllm: {enforce_eager: false}}]"
SAMPLING: Mapping[str, float] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
"""Settings of transformers' ``generate`` that vLLM has by the same names, with the defaults of transformers 5.17. They
count only if a text is sampled."""
ALWAYS: Mapping[str, float] = {"repetition_penalty": 1.0}
"""The same for those that count in greedy decoding too."""
MISSING: Mapping[str, object] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "num_return_sequences": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "max_time": None,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "penalty_alpha": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "constraints": None,
    "force_words_ids": None,
    "stop_strings": None,
    "token_healing": False,
    "dola_layers": None,
    "watermarking_config": None,
}
"""Settings of transformers' ``generate`` that change a text and that vLLM has not, or has otherwise, with the value at
which they do nothing; so does None."""


@dataclass(frozen=True)
class KeptTokens:
    """What the cache holds: ``states`` is a placeholder tensor of the bytes of all tokens' keys and values.

    A text takes whole blocks of the pool (see ``cache_pool``), so up to one block less a token more than this.
    """

    states: torch.Tensor


class VllmModel:
    """A causal language model in vLLM."""

    def __init__(self, runtime: VllmRuntime, tokenizer: Any | None, request: LoadRequest) -> None:
        import torch

        config = runtime.engine.vllm_config
        self.runtime = runtime
        self._request = request
        self.tokenizer = tokenizer
        self.vocabulary = int(config.model_config.get_vocab_size())
        self.device = request.device
        self.threads = torch.get_num_threads()
        self.attention = "vLLM's own"
        self.cache_description: str | None = None
        if request.kv_cache != "model":
            self.cache_description = f"{config.cache_config.cache_dtype} of vLLM"
        self.context_length: int | None = runtime.limits.text_tokens - 1
        self.factored = False
        self._batch: Batch | None = None
        self._new_tokens = 0

    def probe_head(self) -> None:
        """Compares the log-probabilities of head(hidden(x)) with those that vLLM itself returns for a prompt.

        A model that vLLM quantized with wrong scales predicts nothing that could be compared: whoever checks them names
        them. Raises InvalidRunError if the log-probabilities differ: then the states are not what vLLM computes with.
        """
        if self._request.quantization and any(each.fatal for each in self.check_scales().faults):
            return
        tokens = [index % self.vocabulary for index in range(1, PROBE_TOKENS + 1)]
        own = self._own_logprobs(tokens)
        logits = self.head(self.hidden_of([tokens])[0][:-1]).double()
        read = logits.log_softmax(dim=-1).gather(-1, logits.new_tensor(tokens[1:]).long()[:, None])[:, 0].tolist()
        limit = PROBE_NAT.get(self._request.dtype, OTHER_PROBE_NAT)
        worst = max(abs(mine - its) for mine, its in zip(read, own, strict=True))
        if not worst <= limit:
            raise InvalidRunError(
                f"the log-probabilities of vLLM's hidden states differ by up to {worst:.3g} nat from those that vLLM "
                "returns; this version of vLLM computes them otherwise than the harness expects"
            )
        self.factored = True

    def _own_logprobs(self, tokens: Sequence[int]) -> list[float]:
        """vLLM's own log-probability of each token after the first."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        with self.runtime.nothing_left():
            self.runtime.submit(tokens, params)
            (output,) = self.runtime.outputs()
        found = output.prompt_logprobs or []
        return [each[token].logprob for each, token in zip(found[1:], tokens[1:], strict=True) if each is not None]

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.stack(self.hidden_of(tokens.tolist()))

    def hidden_of(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        return [states.to(self.device) for states in self.runtime.states(texts)]

    def complete(
        self, prompts: Sequence[Prompt], new_tokens: int, stops: Sequence[str], seed: int, **settings: Any
    ) -> list[list[int]]:
        """vLLM searches for ``stops`` in the text that continues the prompt. Some tokenizers drop the first space when
        they decode the new tokens alone; if that leaves no stop in the text, it is continued."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError

        if self.tokenizer is None:
            raise UnsupportedError("a text is searched for its stops, and the model has no tokenizer")
        own = self.runtime.generation_config
        written: list[list[int]] = [[] for _ in prompts]
        waiting: dict[str, int] = {}

        def submit(index: int) -> None:
            try:
                params = SamplingParams(
                    **sampling(own, settings),
                    seed=request_seed(seed, prompts[index].number),
                    stop=list(stops),
                    stop_token_ids=ends(own),
                    max_tokens=new_tokens - len(written[index]),
                    skip_special_tokens=False,  # a stop may be a special token
                )
            except VLLMValidationError as error:
                raise UnsupportedError(f"vLLM refuses these generation settings: {error}") from error
            waiting[self.runtime.submit([*prompts[index].tokens, *written[index]], params).partition("-")[0]] = index

        with self.runtime.nothing_left():
            for index in range(len(prompts)):
                submit(index)
            for output in self.runtime.outputs():
                index = waiting.pop(output.request_id)
                last = output.outputs[0]
                written[index] += last.token_ids
                stop = last.stop_reason
                missed = isinstance(stop, str) and stop not in self.tokenizer.decode(written[index])
                if missed and len(written[index]) < new_tokens:
                    submit(index)
        return written

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.runtime.head(hidden).to(self.device)

    def output_embedding(self) -> HeadWeights | None:
        """None: vLLM pads, shards or quantizes its head; only vLLM applies it."""
        return None

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(tokens))

    def own_cache_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """The same as ``logits``: vLLM's cache has one type from the start to the end, also if it has fewer bits."""
        return self.logits(tokens)

    def prefill(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Outside of ``decoder`` no token is written after the prompt."""
        if self._batch is not None:
            self._batch.drop()
        self._batch = Batch(self.runtime, tokens.tolist(), self._new_tokens)
        return self._batch.read(), self._written(self._batch)

    def decode(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """One step of vLLM's engine, which reads the token that it has sampled.

        Raises InvalidRunError for another token, and HarnessError without a prompt or beyond ``new_tokens`` steps.
        """
        if self._batch is None:
            raise HarnessError("decode before prefill")
        return self._batch.write(tokens[:, 0].tolist()), self._written(self._batch)

    @contextmanager
    def decoder(self, mode: DecodeMode, prompt: torch.Tensor, new_tokens: int) -> Iterator[Decoder]:
        """The model itself; what is unfinished at the end leaves the engine."""
        if mode != "eager":
            raise UnsupportedError(f"vllm cannot decode in decode_mode {mode}; {COMPILING}")
        self._new_tokens = new_tokens
        try:
            yield self
        finally:
            self._new_tokens = 0
            if self._batch is not None:
                self._batch.drop()
                self._batch = None

    def _written(self, batch: Batch) -> KeptTokens:
        import torch

        limits = self.runtime.limits
        elements = round(batch.kept_tokens * limits.cache_bytes_per_token) // limits.cache_dtype.itemsize
        return KeptTokens(torch.empty(elements, dtype=limits.cache_dtype, device="meta"))

    def cache_pool(self) -> CachePool:
        limits = self.runtime.limits
        return CachePool(limits.cache_bytes, limits.cache_blocks, limits.block_tokens)

    def sync(self) -> None:
        """A step ends when its tokens are on the host, so a GPU's events around it time the whole step, as on a CPU."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()

    def close(self) -> None:
        self.runtime.close()

    def weight_ledger(self) -> Sequence[StoredTensor]:
        return self._weights.ledger(self._described)

    def running_bytes(self) -> int:
        """The bytes of all weights in memory, over all GPUs; of oneDNN's handlers the matrices without their padding.

        vLLM repacks weights while loading. A matrix that is both embedding and head is in memory more than once.
        """
        return sum(description.memory_bytes for description in self.runtime.described(self._weights.modules))

    def check_scales(self) -> ScaleCheck:
        return self.runtime.check_scales()

    def kernels(self) -> Mapping[str, int]:
        return self._weights.kernels(self._described)

    def products(self, rows: int, mode: DecodeMode = "eager") -> Mapping[str, Product]:
        return self._weights.products(self._described, rows)

    def arithmetic(self) -> Mapping[str, Arithmetic]:
        return self._weights.arithmetic(self._described)

    @cached_property
    def _weights(self) -> CheckpointWeights:
        return CheckpointWeights(self._request.path)

    @cached_property
    def _described(self) -> Description:
        return self.runtime.described(self._weights.modules)[0]


def sampling(own: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """How vLLM's SamplingParams name ``settings`` of transformers' ``generate`` on top of a checkpoint's ``own``.

    Raises UnsupportedError for a setting that changes the text and that vLLM does not have.
    """
    unknown = settings.keys() - {"do_sample", *SAMPLING, *ALWAYS, *MISSING}
    chosen = {name: value for name, value in {**own, **settings}.items() if value is not None}
    unmet = [name for name, neutral in MISSING.items() if chosen.get(name, neutral) != neutral]
    if unknown or unmet:
        named = ", ".join(f"{name}: {chosen.get(name)}" for name in sorted({*unknown, *unmet}))
        raise UnsupportedError(f"vLLM cannot generate as transformers does with {named}")
    always = {name: chosen.get(name, default) for name, default in ALWAYS.items()}
    if not chosen.get("do_sample"):
        return {**always, "temperature": 0.0}
    return {**always, **{name: chosen.get(name, default) for name, default in SAMPLING.items()}}


def ends(own: Mapping[str, Any]) -> list[int]:
    """The tokens that end a text by a checkpoint's generation config. vLLM adds the tokenizer's EOS itself."""
    named = own.get("eos_token_id")
    return [] if named is None else [named] if isinstance(named, int) else list(named)
