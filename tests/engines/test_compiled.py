"""Compiled decoding on a small random model: what it writes, and what it refuses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest
import torch

from harness.core.capability import Decoder
from harness.core.workload import ThroughputWorkload
from harness.engines.transformers.compiled import _compile, compiled
from harness.engines.transformers.engine import TransformersModel
from harness.errors import InvalidRunError, UnsupportedError
from harness.metrics.throughput import measure
from harness.numerics.prompts import random_tokens

pytestmark = pytest.mark.heavy

COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


@pytest.fixture
def model() -> TransformersModel:
    from small_llama import small_llama

    return TransformersModel(small_llama(), None)


@pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler for a CPU, and none was found")
def test_it_writes_what_the_model_writes_and_again_from_the_beginning(model: TransformersModel) -> None:
    prompt = random_tokens(model.vocabulary, 2, 5, seed=0)
    with torch.inference_mode(), model.decoder("compiled", prompt, 4) as decoder:
        written = [_written(decoder, prompt, 4) for _ in range(2)]
        other = random_tokens(model.vocabulary, 2, 5, seed=1)
        written.append(_written(decoder, other, 4))
        with pytest.raises(RuntimeError, match="recompile"):  # a slow step is not timed as a quick one
            decoder.decode(torch.zeros(3, 1, dtype=torch.int64), None)
    with torch.inference_mode():
        expected = [_written(model, each, 4) for each in (prompt, prompt, other)]
    for found, own in zip(written, expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler for a CPU, and none was found")
def test_its_timings_say_that_they_are_compiled(model: TransformersModel) -> None:
    workload = ThroughputWorkload((2,), (5,), 4, warmup=1, iterations=2, decode_mode="compiled")
    prefill, decode, ready = measure(model, workload, seed=0)
    assert {m.protocol["decode_mode"] for m in (prefill, decode, ready)} == {"compiled"}
    assert len(prefill.values) == 2
    assert len(decode.values) == 8
    assert ready.metric == "decoder_ready_s"
    assert ready.values[0] > sum(decode.values)


def test_a_break_in_the_graph_is_unsupported_with_its_reason(model: TransformersModel) -> None:
    def peek(*_: object) -> None:
        torch._dynamo.graph_break()

    model._model.lm_head.register_forward_hook(peek)
    prompt = random_tokens(model.vocabulary, 1, 5, seed=0)
    with (
        pytest.raises(UnsupportedError, match=r"decoding cannot be compiled: .*graph_break"),
        torch.inference_mode(),
        model.decoder("compiled", prompt, 4),
    ):
        pytest.fail("it was compiled")


class Liar:
    """Decodes like the model until a step at which it says something else."""

    def __init__(self, model: Decoder, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._model, self._change = model, change

    def prefill(self, tokens: torch.Tensor):
        return self._model.prefill(tokens)

    def decode(self, tokens: torch.Tensor, cache: object):
        logits, cache = self._model.decode(tokens, cache)
        return self._change(logits), cache


@pytest.mark.parametrize("change", [lambda logits: logits.flip(-1), lambda logits: logits * torch.nan])
def test_logits_that_differ_are_invalid(model: TransformersModel, change) -> None:
    prompt = random_tokens(model.vocabulary, 1, 5, seed=0)
    with torch.inference_mode():
        _compile(Liar(model, lambda logits: logits * 1.001), model, prompt, 3)  # rounding is not refused
        with pytest.raises(InvalidRunError, match="something else"):
            _compile(Liar(model, change), model, prompt, 3)


def test_a_missing_compiler_is_unsupported(model: TransformersModel, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    prompt = random_tokens(model.vocabulary, 1, 7, seed=0)
    with (
        torch._inductor.config.patch({"cpp.cxx": (str(tmp_path / "none"),)}),  # monkeypatch would not put it back
        pytest.raises(UnsupportedError, match="cannot be compiled"),
        torch.inference_mode(),
        compiled(model, model._model, prompt, 3),
    ):
        pytest.fail("it was compiled")


def _written(decoder: Decoder, prompt: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """The logits of a greedy text's steps, (steps, batch, vocabulary)."""
    logits, cache = decoder.prefill(prompt)
    steps = [logits.clone()]
    for _ in range(new_tokens):
        logits, cache = decoder.decode(logits.argmax(dim=-1, keepdim=True), cache)
        steps.append(logits.clone())
    return torch.stack(steps)
