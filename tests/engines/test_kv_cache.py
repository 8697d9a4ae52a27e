"""Key-value caches in fewer bits: that they are read, how near they come, and what they take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.core.engine import LoadRequest
from harness.engines.transformers import kv_cache
from harness.engines.transformers.engine import load
from harness.errors import UnsupportedError
from harness.host.machine import installed_version
from harness.numerics.kv_cache import stored_bytes
from harness.numerics.prompts import random_tokens

pytestmark = pytest.mark.heavy

HQQ = pytest.mark.skipif(installed_version("hqq") is None, reason="hqq is not installed: pip install 'qharness[hqq]'")
KINDS = ["fp8", pytest.param("int8", marks=HQQ), pytest.param("int4", marks=HQQ)]
LENGTH = 3 * kv_cache.CHUNK_TOKENS - 5


def read(tiny: Path, kind: str):
    model = load(LoadRequest(tiny, "float32", "cpu", kv_cache=kind))
    model.probe_head()
    return model


@pytest.fixture
def tokens(tiny: Path) -> torch.Tensor:
    return random_tokens(512, 2, LENGTH, seed=3)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_chunk_reads_no_cache_and_the_next_one_does(tiny: Path, tokens: torch.Tensor, kind: str) -> None:
    plain, cached = read(tiny, "model"), read(tiny, kind)
    own, other = plain.logits(tokens), cached.logits(tokens)
    assert cached.factored
    torch.testing.assert_close(cached.head(cached.hidden(tokens)), other, rtol=1e-4, atol=1e-4)
    first = kv_cache.CHUNK_TOKENS
    torch.testing.assert_close(other[:, :first], own[:, :first], rtol=1e-4, atol=1e-4)
    changed = (other[:, first:] - own[:, first:]).norm() / own[:, first:].norm()
    assert 1e-5 < changed < {"int8": 0.01, "fp8": 0.1, "int4": 0.3}[kind]


@torch.inference_mode()
def test_float8_is_what_decoding_step_by_step_over_rounded_keys_gives(tiny: Path, tokens: torch.Tensor) -> None:
    """Beside transformers' own cache, whose keys and values are rounded by hand after every step."""
    plain, cached = read(tiny, "model"), read(tiny, "fp8")
    logits, past = plain.prefill(tokens[:, :8])
    found, cache = cached.prefill(tokens[:, :8])
    for at in range(8, 20):
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
        for layer in past.layers:
            layer.keys = layer.keys.to(torch.float8_e4m3fn).to(torch.float32)
            layer.values = layer.values.to(torch.float8_e4m3fn).to(torch.float32)
        logits, past = plain.decode(tokens[:, at : at + 1], past)
        found, cache = cached.decode(tokens[:, at : at + 1], cache)


@torch.inference_mode()
def test_values_beyond_float8_are_held_at_its_largest() -> None:
    layer = kv_cache._fp8_layer()
    states = torch.tensor([1e4, -1e4, 1.0]).reshape(1, 1, 1, 3)
    layer.update(states, states)
    keys, _ = layer.update(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3))
    assert keys[0, 0, 0].tolist() == [448.0, -448.0, 1.0]


@torch.inference_mode()
def test_what_a_token_takes(tiny: Path) -> None:
    prompt = random_tokens(512, 1, 128, seed=0)
    sizes = {kind: stored_bytes(read(tiny, kind).prefill(prompt)[1]) for kind in ("model", "fp8")}
    assert sizes["model"] == 4 * sizes["fp8"]


@HQQ
@torch.inference_mode()
def test_packed_caches_take_their_bits_and_scales(tiny: Path) -> None:
    prompt = random_tokens(512, 1, 128, seed=0)
    own = stored_bytes(read(tiny, "model").prefill(prompt)[1])
    for kind, bits in (("int8", 8), ("int4", 4)):
        scale_and_zero = 2 * 32 / 32  # in float32, of a group of 32
        assert stored_bytes(read(tiny, kind).prefill(prompt)[1]) == own * (bits + scale_and_zero) / 32


@HQQ
@torch.inference_mode()
def test_packed_caches_take_texts_of_any_length(tiny: Path) -> None:
    """A token's keys are 32 numbers here: groups of 64 would not come out even."""
    for length in (63, kv_cache.CHUNK_TOKENS + 1):
        assert read(tiny, "int4").logits(random_tokens(512, 1, length, seed=0)).isfinite().all()


def test_tasks_and_compiling_do_not_go_around_the_cache(tiny: Path, tokens: torch.Tensor) -> None:
    model = read(tiny, "fp8")
    assert not model.can_branch()
    with pytest.raises(UnsupportedError, match="static"):
        model.decoder("compiled", tokens, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_windows_is_refused(kind: str) -> None:
    from transformers import MistralConfig

    with pytest.raises(UnsupportedError, match=f"no {kind} key-value cache"):
        kv_cache.cache_maker(kind, MistralConfig(num_hidden_layers=2, sliding_window=8))
