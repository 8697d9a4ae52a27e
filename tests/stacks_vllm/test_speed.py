"""vLLM's decoding in single steps: the right tokens, one for each text in each step, and an engine left empty."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.api.plan import plan
from harness.figures.derived.footprint import footprint
from harness.recipe import load_recipe
from harness.stacks import Stack, Stacks

pytestmark = pytest.mark.stack

LAYERS, KEY_HEADS, HEAD_SIZE, VOCABULARY, BLOCK = 2, 1, 64, 512, 128
SHAPES = [(1, 5, 6), (2, 40, 3), (3, 130, 2), (4, 61, 8)]
"""Texts, tokens of each prompt, and tokens written after it; with steps of 64 tokens most are read in several."""

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from harness.core.capability import Decodes, Pooled
from harness.core.engine import LoadRequest
from harness.engines.vllm.engine import VLLM, imports
from harness.errors import HarnessError
from harness.numerics.kv_cache import element_bytes, stored_bytes

folder, dtype, cache, params, cases = json.loads(sys.argv[1])
imports()
model = VLLM.load(LoadRequest(Path(folder), dtype, "cpu", kv_cache=cache), VLLM.params.model_validate(params))
assert isinstance(model, Decodes) and isinstance(model, Pooled)
scheduler = model.runtime.scheduler


def used():
    return model.cache_pool().blocks - 1 - scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def refused(work):
    try:
        work()
    except HarnessError as error:
        return [type(error).__name__, str(error)]
    return None


made = []
for prompts, new_tokens in cases:
    tokens = torch.tensor(prompts)
    with torch.inference_mode(), model.decoder("eager", tokens, new_tokens) as decoder:
        for _ in range(2):  # the first one is left unfinished
            logits, cache = decoder.prefill(tokens)
            first = logits
            blocks = [used()]
        bytes_after_prefill = stored_bytes(cache)
        wrong = refused(lambda: decoder.decode(logits.argmax(dim=-1, keepdim=True) + 1, cache))
        written = [logits.argmax(dim=-1).tolist()]
        for _ in range(new_tokens):
            logits, cache = decoder.decode(logits.argmax(dim=-1, keepdim=True), cache)
            blocks.append(used())
            written.append(logits.argmax(dim=-1).tolist())
        beyond = refused(lambda: decoder.decode(logits.argmax(dim=-1, keepdim=True), cache))
    made.append({
        "first": first.tolist(), "last": logits.tolist(), "written": written, "wrong": wrong, "beyond": beyond,
        "prefill_bytes": bytes_after_prefill, "bytes": stored_bytes(cache), "element": element_bytes(cache),
        "blocks": blocks, "left": [model.runtime.engine.has_unfinished_requests(), used()],
    })
with torch.inference_mode():
    _, cache = model.prefill(torch.tensor([[3, 4]]))  # as the bounds of speed ask for the bytes of an element
    alone = [stored_bytes(cache), model.runtime.engine.has_unfinished_requests()]


def enter(mode, rows, length, new_tokens):
    with model.decoder(mode, torch.zeros(rows, length, dtype=torch.int64), new_tokens) as decoder:
        decoder.prefill(torch.zeros(rows, length, dtype=torch.int64))


limits = [refused(lambda: enter(*each)) for each in (
    ("eager", 9, 4, 1), ("eager", 1, 200, 57), ("eager", 8, 200, 56), ("compiled", 1, 4, 1)
)]
pool = model.cache_pool()
steps = model.runtime.limits.step_tokens
threads = [model.threads, torch.get_num_threads()]
print(json.dumps({"made": made, "alone": alone, "limits": limits, "steps": steps, "threads": threads,
                  "pool": [pool.bytes, pool.blocks, pool.block_tokens],
                  "mode": str(model.runtime.engine.vllm_config.compilation_config.mode),
                  "reuse": model.runtime.engine.vllm_config.cache_config.enable_prefix_caching}))
"""
SMALL = {
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "max_model_len": 257,
    "kv_cache_memory": 17 * BLOCK * 2 * LAYERS * KEY_HEADS * HEAD_SIZE * 4,
}
Decode = Callable[..., Any]


def prompts_of(texts: int, length: int) -> list[list[int]]:
    drawn = torch.randint(2, VOCABULARY, (texts, length), generator=torch.Generator().manual_seed(length))
    return drawn.tolist()  # type: ignore[no-any-return]


CASES = [(prompts_of(texts, length), new_tokens) for texts, length, new_tokens in SHAPES]


@pytest.fixture(scope="module")
def decoded(run_in_stack: Callable[..., Any], tiny_llama: Path) -> Any:
    """What vLLM decodes in float32, in steps of 64 tokens and with a cache of 16 blocks for texts."""
    return run_in_stack(PROGRAM, json.dumps([str(tiny_llama), "float32", "model", SMALL, CASES]))


@torch.inference_mode()
def greedy(folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[list[list[int]], torch.Tensor]:
    """What transformers writes, step by step, and its logits after the prompts and after the last token but one."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens, written, logits = torch.tensor(prompts), [], []
    for _ in range(new_tokens + 1):
        logits.append(model(tokens).logits[:, -1])
        written.append(logits[-1].argmax(dim=-1).tolist())
        tokens = torch.cat([tokens, torch.tensor(written[-1])[:, None]], dim=1)
    return written, torch.stack([logits[0], logits[-1]])


@pytest.mark.parametrize("case", range(len(CASES)))
def test_it_writes_what_transformers_writes(decoded: Any, tiny_llama: Path, case: int) -> None:
    """Each row is that of its own text: vLLM orders texts as it likes, and here it reads some before others."""
    written, logits = greedy(tiny_llama, *CASES[case])
    made = decoded["made"][case]
    assert made["written"] == written
    torch.testing.assert_close(torch.tensor([made["first"], made["last"]]), logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_each_text_takes_the_blocks_of_its_tokens_and_none_is_left(decoded: Any, case: int) -> None:
    """A text that wrote ahead of the others would take a block too early, and one that waited, too late."""
    texts, length, new_tokens = SHAPES[case]
    made = decoded["made"][case]
    lengths = [length + written for written in range(new_tokens)]  # those of the last step are free again
    assert made["blocks"] == [*(texts * -(-tokens // BLOCK) for tokens in lengths), 0]
    assert made["left"] == [False, 0]
    per_token = 2 * LAYERS * KEY_HEADS * HEAD_SIZE * 4
    assert (made["prefill_bytes"], made["element"]) == (texts * length * per_token, 4)
    assert made["bytes"] == texts * (length + new_tokens) * per_token


def test_tokens_that_vllm_did_not_sample_are_an_error_and_so_is_one_more(decoded: Any) -> None:
    for made in decoded["made"]:
        kind, message = made["wrong"]
        assert kind == "InvalidRunError"
        assert f"but vLLM sampled {made['written'][0][0]}" in message
        assert made["beyond"][0] == "HarnessError"


def test_a_prompt_outside_of_a_decoder_leaves_the_engine_empty(decoded: Any) -> None:
    assert decoded["alone"] == [2 * 2 * LAYERS * KEY_HEADS * HEAD_SIZE * 4, False]


def test_what_it_cannot_hold_is_unsupported_in_one_sentence(decoded: Any) -> None:
    assert decoded["limits"] == [
        ["UnsupportedError", "vLLM takes 8 texts at once here, not 9: raise max_num_seqs"],
        ["UnsupportedError", "vLLM takes texts of 256 tokens here, not 257: raise max_model_len"],
        None,  # 8 texts of 2 blocks are all that there are
        [
            "UnsupportedError",
            "vllm cannot decode in decode_mode compiled; it compiles when it loads: leave decode_mode out, and write "
            "engines: [{vllm: {enforce_eager: false}}]",
        ],
    ]


def test_its_pool_is_what_was_asked_for(decoded: Any) -> None:
    assert decoded["pool"] == [SMALL["kv_cache_memory"], 17, BLOCK]
    assert decoded["steps"] == 64
    assert decoded["threads"] == [1, 1]
    assert not decoded["reuse"], "a prompt that is read again would not be computed again"


def test_a_cache_of_8_bits_is_half_of_one_of_16(run_in_stack: Callable[..., Any], tiny_llama: Path) -> None:
    given = json.dumps([str(tiny_llama), "bfloat16", "fp8", {**SMALL, "kv_cache_memory": 2**20}, CASES[1:2]])
    found = run_in_stack(PROGRAM, given)
    (made,) = found["made"]
    texts, length, _ = SHAPES[1]
    assert (made["prefill_bytes"], made["element"]) == (texts * length * 2 * LAYERS * KEY_HEADS * HEAD_SIZE, 1)
    assert found["pool"][1] == 2**20 // (BLOCK * 2 * LAYERS * KEY_HEADS * HEAD_SIZE)


def test_compiled_it_writes_the_same_and_keeps_its_kernels_where_those_of_torch_are(
    run_in_stack: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    given = json.dumps([str(tiny_llama), "float32", "model", {**SMALL, "enforce_eager": False}, CASES[:2]])
    home = tmp_path / "home"
    home.mkdir()
    kernels = tmp_path / "kernels"
    found = run_in_stack(PROGRAM, given, TORCHINDUCTOR_CACHE_DIR=str(kernels), HOME=str(home), XDG_CACHE_HOME=str(home))
    assert found["mode"] != "0"
    assert [made["written"] for made in found["made"]] == [greedy(tiny_llama, *case)[0] for case in CASES[:2]]
    assert list((kernels / "vllm").rglob("*.so")), "what it compiled"
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_performance_run_times_and_weighs_it(sweeps: Any, vllm_stack: Stack, tiny_llama: Path) -> None:
    """By the worker, in the stack: speeds, bounds and memory, with the pool apart from the cache of a token."""
    given = {
        "models": [{"id": str(tiny_llama), "dtype": "float32", "label": "tiny"}],
        "engines": [{"vllm": {name: size for name, size in SMALL.items() if name != "kv_cache_memory"}}],
        "methods": ["none"],
        "threads": 1,
        "repetitions": 1,
        "measure": {
            "throughput": {"batch_sizes": [1, 3], "prompt_tokens": [16, 70], "new_tokens": 4, "iterations": 2},
            "memory": {},
            "energy": {},
        },
    }
    stacks = Stacks(sweeps.folder / "stacks", {"vllm": vllm_stack.python})
    planned = plan(load_recipe(sweeps.recipe(given)), stacks=stacks)
    records = sweeps.make(planned, stacks=stacks)
    assert {record.status for record in records} == {"ok"}, [record.outcome.failure for record in records]
    (run,) = (record for record in records if record.spec.kind == "performance")
    found = [m for m in run.outcome.measurements if m.metric == "decode_step_s"]
    assert [(m.protocol["batch_size"], m.protocol["prompt_tokens"]) for m in found] == [
        (1, 16),
        (1, 70),
        (3, 16),
        (3, 70),
    ]
    assert all(len(m.values) == 2 * 4 and min(m.values) > 0 for m in found)
    pool, parts = run.find("kv_cache_pool_bytes").values[0], footprint([run])
    per_token = 2 * LAYERS * KEY_HEADS * HEAD_SIZE * 4
    assert parts is not None
    assert (parts.kv_bytes_per_token, parts.pool_bytes) == (per_token, pool)
    assert 0.99 * 2**30 < pool <= 2**30
    loaded = [m.values[0] for m in run.outcome.measurements if m.metric == "memory_after_bytes"]
    assert max(loaded) > pool, "vLLM writes zeros to its pool: all of it is resident"
    assert run.outcome.fact("cache_unlike_shape") is None
    assert run.outcome.fact("attention_not_bound") is None
    assert {m.protocol["part"] for m in run.outcome.measurements if m.metric == "decode_read_bytes"} == {
        "weights",
        "KV cache",
    }
