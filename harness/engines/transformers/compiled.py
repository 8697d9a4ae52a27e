"""Compiled decoding for the transformers engine: one graph per step, over a static key-value cache.

Like transformers' ``generate`` with ``cache_implementation="static"``, but without silent fallbacks: a graph break
or a recompilation is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.core.capability import Decoder
from harness.errors import InvalidRunError, UnsupportedError, first_line_of

if TYPE_CHECKING:
    import torch

MODES = {"cuda": "reduce-overhead"}
"""The torch.compile mode per device: CUDA graphs, so that Python makes one launch per step."""
TOLERANCE = 0.1
"""Largest allowed difference between compiled and eager logits, relative to their norm.

Rounding causes up to a few hundredths: fused kernels round in other places, which can change a quantized activation's
code.
"""


@contextmanager
def compiled(eager: Decoder, model: Any, prompt: torch.Tensor, new_tokens: int) -> Iterator[Decoder]:
    """A compiled decoder for prompts of this shape (batch, length) and ``new_tokens`` steps after them.

    Before use it is checked against the model's eager decoding on one text. Raises UnsupportedError if the model
    cannot be compiled as one graph, and InvalidRunError if its logits differ.
    """
    import torch

    torch.compiler.reset()
    try:
        decoder = _Compiled(model, prompt.shape[1] + new_tokens)
        _compile(decoder, eager, prompt, new_tokens)
        with torch.compiler.set_stance("fail_on_recompile"):
            yield decoder
    finally:
        torch.compiler.reset()


class _Compiled:
    """Eager prefill into a cache of fixed size, then steps with the compiled graph. One batch at a time."""

    def __init__(self, model: Any, length: int) -> None:
        import torch
        from transformers import StaticCache

        self._model = model
        self._step = torch.compile(model.forward, fullgraph=True, mode=MODES.get(model.device.type))
        try:
            self._cache = StaticCache(config=model.config, max_cache_len=length)
        except (AttributeError, TypeError, ValueError) as error:
            raise UnsupportedError(f"decoding cannot be compiled: no static key-value cache: {error}") from error

    def prefill(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
        self._cache.reset()
        return self._last(self._model, tokens), self._cache

    def decode(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        import torch

        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._last(self._step, tokens), cache

    def _last(self, forward: Any, tokens: torch.Tensor) -> torch.Tensor:
        inputs = tokens.to(self._model.device)
        output = forward(input_ids=inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1]  # type: ignore[no-any-return]


def _compile(decoder: Decoder, eager: Decoder, prompt: torch.Tensor, new_tokens: int) -> None:
    """Compiles by decoding one text with both decoders, using the eager tokens, and compares every step's logits."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    expected, past = eager.prefill(prompt)
    found, cache = decoder.prefill(prompt)
    try:
        for _ in range(new_tokens):
            _check(found, expected)
            token = expected.argmax(dim=-1, keepdim=True)
            expected, past = eager.decode(token, past)
            found, cache = decoder.decode(token, cache)
        _check(found, expected)
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        raise UnsupportedError(f"decoding cannot be compiled: {first_line_of(error)}") from error


def _check(found: torch.Tensor, expected: torch.Tensor) -> None:
    difference = float((found.float() - expected.float()).norm() / expected.float().norm())
    if not difference <= TOLERANCE:
        raise InvalidRunError(f"compiled decoding writes something else: its logits differ by {difference:.0%}")
