"""Memory: each phase has its own peak, and a cache is counted as it is stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from run_specs import run_spec
from transformers import AutoModelForCausalLM, DeepseekV3Config, DynamicCache, LlamaConfig, StaticCache

from harness.core.capability import Decoder, StoredTensor
from harness.core.engine import LoadRequest
from harness.core.identity import DecodeMode, KvCache
from harness.core.model import ModelRef
from harness.core.workload import ThroughputWorkload
from harness.engines.llamacpp.engine import LlamaCppModel, LlamaCppParams
from harness.engines.transformers.engine import TransformersModel
from harness.execution.context import Context
from harness.execution.footprint import footprint
from harness.metrics.memory import PeakMemory, kv_cache, weights
from harness.models.gguf.layout import GgufFile
from harness.models.gguf.reader import GgufTensor
from harness.models.headers import read_config
from harness.numerics.kv_cache import element_bytes, expected_bytes_per_token, stored_bytes
from harness.storage.cache import Cache

pytestmark = pytest.mark.heavy

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's figures are Linux's")


def figures(peaks: PeakMemory, metric: str, source: str) -> dict[str, float]:
    """By phase."""
    found = [m for m in peaks.finish() if m.metric == metric and m.protocol["source"] == source]
    return {str(m.protocol["phase"]): m.values[0] for m in found}


@linux
def test_a_phase_is_not_charged_for_the_one_before() -> None:
    peaks = PeakMemory("cpu")
    with peaks.phase("large"):
        np.ones(200_000_000, dtype=np.uint8).sum()
    with peaks.phase("small"):
        np.ones(1_000_000, dtype=np.uint8).sum()
    found = figures(peaks, "peak_memory_bytes", "VmHWM")
    assert 150e6 < found["large"] - found["small"] < 250e6


@linux
def test_what_a_phase_left_free_in_the_heap_does_not_hide_what_the_next_one_takes() -> None:
    """Blocks below malloc's threshold stay resident when freed; without giving them back the second phase shows 0."""

    def blocks() -> list[np.ndarray]:
        return [np.ones(100_000, dtype=np.uint8) for _ in range(600)]

    peaks = PeakMemory("cpu")
    kept = []
    for name in ("first", "second"):
        with peaks.phase(name):
            kept.append(blocks()[-1])  # the last one stays, at the top of the heap
    peak, before = (figures(peaks, f"{which}_bytes", source) for which, source in MARKS)
    assert peak["second"] - before["second"] > 50e6


MARKS = (("peak_memory", "VmHWM"), ("memory_before", "VmRSS"))


@linux
def test_what_stays_is_told_as_the_processes_own_and_as_pages_of_files(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(30_000_000))
    peaks = PeakMemory("cpu")
    with peaks.phase("empty"):
        pass
    with peaks.phase("mapped"):
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        mapped.sum()
    with peaks.phase("own"):
        own = np.ones(40_000_000, dtype=np.uint8)
    files, private = (figures(peaks, "memory_after_bytes", source) for source in ("RssFile", "RssAnon"))
    assert files["mapped"] - files["empty"] == pytest.approx(len(mapped), rel=0.1)
    assert private["own"] - private["mapped"] == pytest.approx(len(own), rel=0.1)


def test_a_phase_that_fails_still_has_a_peak_and_phases_of_one_name_are_told_apart() -> None:
    peaks = PeakMemory("cpu")
    with pytest.raises(ValueError, match="oh"), peaks.phase("broken", batch_size=4):
        raise ValueError("oh")
    (peak,) = [m for m in peaks.finish() if m.metric == "peak_memory_bytes"]
    assert (peak.protocol["phase"], peak.protocol["batch_size"]) == ("broken", 4)


def test_stored_bytes_are_summed_by_role_and_tied_ones_counted_once() -> None:
    ledger = [
        StoredTensor("e", "embedding", "float32", 100, 400, 0, False),
        StoredTensor("a", "linear", "PackedLinear", 64, 32, 8, True),
        StoredTensor("b", "linear", "PackedLinear", 64, 32, 8, True),
        StoredTensor("h", "head", "float32", 100, 0, 0, False, tied=True),
    ]
    found = {(m.metric, m.protocol["role"], m.protocol.get("part")): m.values[0] for m in weights(ledger)}
    assert found["stored_bytes", "linear", "values"] == 64
    assert found["stored_bytes", "linear", "scales"] == 16
    assert found["parameters", "head", None] == 0
    assert found["parameters", "embedding", None] == 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_cache_takes_what_arithmetic_says(tiny: Path, dtype: torch.dtype) -> None:
    """2 · 4 layers · 2 heads · 16 dimensions · bytes of an element."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=dtype)
    with torch.inference_mode():
        cache = model(torch.zeros(3, 10, dtype=torch.int64), use_cache=True).past_key_values
    measured = kv_cache(stored_bytes(cache), batch_size=3, tokens=10, after="prefill")
    assert element_bytes(cache) == dtype.itemsize
    assert measured.values == (2 * 4 * 2 * 16 * dtype.itemsize,)
    assert measured.values == (expected_bytes_per_token(read_config(tiny), dtype.itemsize),)


def test_a_real_cache_of_latents_takes_what_arithmetic_says() -> None:
    """A layer keeps 32 numbers of a latent and 8 of a rotary key, however many heads it has."""
    latent = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = DeepseekV3Config(**sizes, **latent, num_key_value_heads=4, first_k_dense_replace=2, vocab_size=64)
    with torch.inference_mode():
        cache = AutoModelForCausalLM.from_config(config)(torch.zeros(3, 10, dtype=torch.int64)).past_key_values
    assert stored_bytes(cache) == 3 * 10 * 2 * (32 + 8) * 4
    assert stored_bytes(cache) == 3 * 10 * (expected_bytes_per_token(config.to_dict(), 4) or 0)


def test_a_static_cache_counts_by_what_it_holds_ready() -> None:
    shape = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3)
    cache = StaticCache(shape, max_cache_len=64)
    for layer in range(3):
        keys = torch.zeros(1, 2, 5, 8)
        cache.update(keys, keys, layer, {"cache_position": torch.arange(5)})
    assert stored_bytes(cache) == pytest.approx(2 * 3 * 2 * 64 * 8 * 4, rel=0.01)  # and its counters


def test_a_cache_that_is_allocated_with_its_decoder_is_recorded_at_each_point(tiny: Path, tmp_path: Path) -> None:
    class Preallocating(TransformersModel):
        room = 0

        @contextmanager
        def decoder(self, mode: DecodeMode, prompt: torch.Tensor, new_tokens: int) -> Iterator[Decoder]:
            self.room = prompt.shape[0] * (prompt.shape[1] + new_tokens)
            yield self

        def allocated_cache_bytes(self) -> int:
            return 1000 * self.room

    context = Context(
        run_spec("performance", model=ModelRef("tiny", "tiny", "0" * 64, "directory", str(tiny))),
        Cache(tmp_path),
        lambda phase: None,
    )
    model = Preallocating(AutoModelForCausalLM.from_pretrained(tiny).eval(), None)
    footprint(context, model, ThroughputWorkload((1, 3), (16,), new_tokens=2, warmup=1, iterations=1))
    found = {
        (m.protocol["batch_size"], m.protocol["prompt_tokens"]): m.values[0]
        for m in context.measurements
        if m.metric == "allocated_kv_cache_bytes"
    }
    assert found == {(1, 8): 10_000, (1, 16): 18_000, (3, 8): 30_000, (3, 16): 54_000}


@pytest.mark.parametrize(("kv_cache", "expected"), [("model", 2 * 24 * 96), ("int8", 34 / 32 * 24 * 96)])
def test_llama_cpps_cache_is_all_that_its_context_has_room_for(
    kv_cache: KvCache, expected: float, tmp_path: Path
) -> None:
    """24 elements a token, in float16 or in Q8_0's blocks of 34 bytes for 32, and room for 3 sequences of 32."""
    embedding = GgufTensor("token_embd.weight", "F32", (8, 64), 8 * 64 * 4, begin=0)
    runtime: Any = SimpleNamespace(vocabulary=8, threads=1, cells=96)
    request = LoadRequest(tmp_path, "float16", "cuda", kv_cache=kv_cache)
    model = LlamaCppModel(runtime, GgufFile("llama", 1, 4096, 8, 24, (embedding,)), None, request, LlamaCppParams())
    assert model.allocated_cache_bytes() == expected


def test_a_buffer_that_several_tensors_view_counts_once_and_whole() -> None:
    buffer = torch.zeros(2, 2, 3, 8, 16)
    cache = DynamicCache()
    cache.update(buffer[0, :, :, :4], buffer[1, :, :, :4], 0)
    whole = stored_bytes([buffer, buffer[0], {"keys": buffer[1]}])
    assert whole == buffer.numel() * 4
    assert element_bytes(cache) == 4
    with pytest.raises(ValueError, match="no tensor"):
        element_bytes(DynamicCache())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}, 131072),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 256, "hidden_size": 64}, 8192),
        ({"text_config": {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8}}, 32),
        ({"n_layer": 12, "n_head": 12}, None),
        ({"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_attention_heads": 128}, 70272),
    ],
)
def test_arithmetic_from_a_config(config: dict[str, object], expected: int | None) -> None:
    """Llama 3.1 8B takes 128 KiB a token at two bytes; DeepSeek-V3, with latents, 68.6 KiB."""
    assert expected_bytes_per_token(config, 2) == expected
