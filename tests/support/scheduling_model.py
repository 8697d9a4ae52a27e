"""A model that schedules its texts itself, as vLLM's does, made of one of transformers: it runs each text alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harness.core.capability import Completes, Prompt, Ragged
from harness.engines.transformers.engine import TransformersModel
from harness.tasks.sampling import request_seed

SHARED = [
    *("tokenizer", "vocabulary", "device", "attention", "threads", "cache_description", "context_length", "factored"),
    *("weight_ledger", "running_bytes", "kernels", "products", "sync", "close", "probe_head"),
    *("logits", "own_cache_logits", "hidden", "head", "output_embedding"),
]


class SchedulingModel:
    """``raw`` as a model that is Ragged and Completes, and nothing beyond that. Keeps what was asked of it."""

    def __init__(self, raw: Any, tokenizer: Any | None) -> None:
        self._raw = raw
        inner = TransformersModel(raw, tokenizer)
        inner.probe_head()
        for name in SHARED:
            setattr(self, name, getattr(inner, name))
        self.read: list[list[list[int]]] = []
        self.written: list[tuple[list[list[int]], int, list[str], list[int], dict[str, Any]]] = []

    def hidden_of(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        self.read.append([list(text) for text in texts])
        return [self._raw.get_decoder()(torch.tensor([list(text)])).last_hidden_state[0] for text in texts]

    def complete(
        self, prompts: Sequence[Prompt], new_tokens: int, stops: Sequence[str], seed: int, **settings: Any
    ) -> list[list[int]]:
        seeds = [request_seed(seed, prompt.number) for prompt in prompts]
        self.written.append(([list(prompt.tokens) for prompt in prompts], new_tokens, list(stops), seeds, settings))
        found = []
        for own, prompt in zip(seeds, prompts, strict=True):
            torch.manual_seed(own)
            text = self._raw.generate(
                torch.tensor([list(prompt.tokens)]),
                max_new_tokens=new_tokens,
                stop_strings=list(stops),  # transformers' own search, which works on the vocabulary
                tokenizer=self.tokenizer,
                pad_token_id=0,
                **settings,
            )
            found.append(text[0, len(prompt.tokens) :].tolist())
        return found


def scheduling(raw: Any, tokenizer: Any | None) -> SchedulingModel:
    """The model, checked to be what it is for."""
    model = SchedulingModel(raw, tokenizer)
    assert isinstance(model, Ragged)
    assert isinstance(model, Completes)
    return model
