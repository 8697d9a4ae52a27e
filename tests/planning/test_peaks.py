"""What runs need that write texts, as it is planned: an upper bound of what was measured, and equal to arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.api.plan import PlanState, plan
from harness.cli.render.plan import show_plan
from harness.core.site import Machine
from harness.models import shapes
from harness.models.shapes import Widths, widths_of
from harness.models.sources import inspect
from harness.planning.peaks import COPIES, LIBRARIES_BYTES, WORKSPACE, WRITTEN_LOGITS
from harness.planning.plan import PlannedRun
from harness.recipe import load_recipe

Make = Callable[..., Mapping[str, PlannedRun]]
CPU = Machine("cpu", "a test machine")
GPU = Machine("cuda", "a test GPU", capability=(9, 0), memory_bytes=80 * 10**9)
HIDDEN, INNER, LAYERS, HEADS, KEYS, WIDTH, VOCABULARY = 576, 1536, 30, 9, 3, 64, 49_152
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    **{"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY},
    **{"num_attention_heads": HEADS, "num_key_value_heads": KEYS, "max_position_embeddings": 8192},
    "tie_word_embeddings": True,
    "dtype": "float32",
}
"""The model of docs/measurements, SmolLM2-135M."""
ONE = {"batch_sizes": [1], "prompt_tokens": [64], "new_tokens": 16}
EIGHT = {"batch_sizes": [1, 8], "prompt_tokens": [128], "new_tokens": 16}
GIB = 2**30


@pytest.fixture
def make(sweeps: Any, tmp_path: Path) -> Make:
    """The runs of a plan by their titles, of a model that is not there: random weights in a configuration's shape."""

    def make(
        throughput: Mapping[str, Any] | None,
        config: Mapping[str, Any] = SMOLLM2,
        machine: Machine = CPU,
        dtype: str = "float32",
        **changes: Any,
    ) -> Mapping[str, PlannedRun]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        content = {
            "models": [{"id": f"synthetic:{tmp_path / 'config.json'}", "label": "random", "dtype": dtype}],
            "methods": ["none"],
            "measure": {"throughput": throughput} if throughput else {"memory": {}},
            "repetitions": 1,
            **({"device": "cuda"} if machine is GPU else {}),
        }
        runs = plan(load_recipe(sweeps.recipe({**content, **changes})), machine)
        return {run.spec.title: run for run in runs}

    return make


def peak(runs: Mapping[str, PlannedRun], title: str = "performance none #1") -> int:
    found = runs[title].peak_bytes
    assert found is not None
    return found


MEASURED = [
    ({}, "float32", ONE, "performance none #1", 0.965),
    ({"methods": ["none", {"rtn": {"bits": 8}}]}, "float32", ONE, "performance rtn bits=8 #1", 0.768),
    ({"methods": ["none", {"rtn": {"bits": 4}}]}, "float32", ONE, "performance rtn bits=4 #1", 0.689),
    ({"decode_mode": ["eager", "compiled"]}, "float32", ONE, "performance none · compiled #1", 1.13),
    ({}, "bfloat16", EIGHT, "performance none #1", 0.71),
    ({"engines": ["vllm"]}, "bfloat16", EIGHT, "performance none · vllm #1", 2.17),
    ({"engines": ["vllm"]}, "float32", EIGHT, "performance none · vllm #1", 2.53),
]
"""The highest peaks in GiB of speed-memory-cpu.md, quickstart-cpu.md and vllm-cpu.md."""


@pytest.mark.parametrize(("changes", "dtype", "grid", "title", "measured_gib"), MEASURED)
def test_planned_peaks_of_speeds_are_upper_bounds_of_those_that_were_measured(
    changes: dict[str, Any], dtype: str, grid: dict[str, Any], title: str, measured_gib: float, make: Make
) -> None:
    planned = peak(make(grid, dtype=dtype, **changes), title)
    assert measured_gib * GIB <= planned <= 1.3 * measured_gib * GIB


SMALL = {
    **SMOLLM2,
    **{"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "vocab_size": 4096},
    **{"num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": False},
}


@pytest.mark.parametrize(("batch", "prompt", "measured_gb"), [(1, 2048, 0.66), (16, 512, 1.05)])
def test_planned_peaks_of_large_batches_are_upper_bounds_too(
    batch: int, prompt: int, measured_gb: float, make: Make
) -> None:
    """Of benchmarks/speed_peaks.py, in docs/measurements/streaming.md."""
    planned = peak(make({"batch_sizes": [batch], "prompt_tokens": [prompt], "new_tokens": 8}, SMALL))
    assert measured_gb <= planned / 1e9 <= 1.3 * measured_gb


@pytest.mark.parametrize(("batch", "prompt", "new"), [(8, 256, 64), (16, 512, 32), (1, 16, 2048)])
def test_the_cache_and_the_largest_prefill_count(batch: int, prompt: int, new: int, make: Make) -> None:
    runs = make({"batch_sizes": sorted({1, batch}), "prompt_tokens": [8, prompt], "new_tokens": new})
    tokens = batch * (prompt + new)
    cache = tokens * 2 * LAYERS * KEYS * WIDTH * 4
    states = batch * prompt * (3 * HIDDEN + max(3 * (HEADS + KEYS) * WIDTH, 3 * INNER)) + VOCABULARY
    growing = tokens * 2 * KEYS * WIDTH * 4 * (2 + HEADS // KEYS)  # of one layer
    logits = WRITTEN_LOGITS * 4 * batch * VOCABULARY
    weights = 4 * (LAYERS * (2 * HIDDEN**2 + 2 * HIDDEN * KEYS * WIDTH + 3 * HIDDEN * INNER) + VOCABULARY * HIDDEN)
    norms = 4 * (2 * LAYERS + 1) * HIDDEN
    largest = COPIES * 4 * HIDDEN * INNER
    beside = LIBRARIES_BYTES + largest + cache + max(WORKSPACE * 4 * states, growing) + logits
    assert peak(runs) == pytest.approx(weights + norms + beside, rel=1e-6)


def test_a_batch_that_memory_cannot_hold_is_told(make: Make) -> None:
    grid = {"batch_sizes": [64], "prompt_tokens": [4096], "new_tokens": 16}
    (note,) = {run.note for run in make(grid, limits={"memory": "8GiB"}).values() if run.spec.kind == "performance"}
    assert str(note).startswith("it may run out of memory: about 2")
    assert "of 8.0 GiB" in str(note)
    assert not any(run.unsupported for run in make(grid, limits={"memory": "8GiB"}).values())


def test_a_cache_of_fewer_bits_takes_less(make: Make) -> None:
    """Of the newest 128 tokens it keeps all bits."""
    grid = {"batch_sizes": [8], "prompt_tokens": [2048], "new_tokens": 16}
    runs = make(grid, kv_cache=["model", "int8"])
    numbers = 8 * 2 * LAYERS * KEYS * WIDTH
    whole, few = (peak(runs, f"performance none{cache} #1") for cache in ("", " · int8 cache"))
    assert whole - few == pytest.approx(numbers * (2064 * (4 - 9 / 8) - 128 * 4), abs=2)


def test_layers_with_a_window_cache_no_more_than_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers need not be asked where the configuration says which layers have one."""
    monkeypatch.setattr(shapes, "resolve", lambda *_: pytest.fail("transformers was asked"))
    grid = {"batch_sizes": [8], "prompt_tokens": [2048], "new_tokens": 16}
    kinds = ["full_attention"] * 10 + ["sliding_attention"] * 20
    mistral = {**SMOLLM2, "layer_types": kinds, "sliding_window": 512}
    for config, unread in ((mistral, 20 * (2064 - 512)), ({**SMOLLM2, "sliding_window": 4096}, 0)):
        saved = peak(make(grid)) - peak(make(grid, config))
        assert saved == pytest.approx(8 * unread * 2 * KEYS * WIDTH * 4, abs=2)


DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    **{"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 512},
    **{"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
}


@pytest.mark.heavy
def test_what_latent_attention_caches_is_asked_of_transformers(make: Make) -> None:
    """It keeps the latent that all heads' keys and values are made from, and a rotary key, in each of two layers."""
    few, many = (
        make({"batch_sizes": [4], "prompt_tokens": [64], "new_tokens": tokens}, DEEPSEEK) for tokens in (8, 58)
    )
    assert peak(many) - peak(few) == pytest.approx(4 * 50 * 2 * (16 + 8) * 4, abs=2)


def test_a_cache_that_is_not_known_leaves_the_peak_open(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.planning.peaks.widths_of", lambda *_: None)
    runs = make(ONE, measure={"throughput": ONE, "memory": {}})
    assert runs["performance none #1"].peak_bytes is None
    show_plan(PlanState(tuple(runs.values())), as_json=False)
    assert "performance none" in capsys.readouterr().out


def test_answers_of_a_task_count_with_their_prompts(tiny: Path, sweeps: Any) -> None:
    """Sixteen at once."""
    found = []
    for tokens in (100, 600):
        task = {"name": "tool-calls-01", "new_tokens": tokens, "limit": 1}
        content = {"models": [str(tiny)], "methods": ["none"], "measure": {"tasks": [task]}}
        (run,) = (run for run in plan(load_recipe(sweeps.recipe(content)), CPU) if run.spec.kind == "task")
        assert run.peak_bytes > LIBRARIES_BYTES + run.weight_bytes
        found.append(run.peak_bytes)
    assert found[1] - found[0] == pytest.approx(16 * 500 * 4 * 2 * 2 * 16 * 4, abs=2)


@pytest.mark.parametrize(("params", "least_bytes"), [({}, 72e9), ({"gpu_memory_utilization": 0.5}, 40e9)])
def test_vllm_takes_its_share_of_a_gpu_whatever_it_runs(params: dict[str, Any], least_bytes: float, make: Make) -> None:
    runs = make(ONE, machine=GPU, engines=[{"vllm": params}])
    (taken,) = (run.peak_bytes for run in runs.values() if run.spec.kind == "performance")
    assert taken == pytest.approx(least_bytes, rel=1e-9)


def test_vllm_takes_a_cache_of_the_size_that_a_recipe_gives_it(make: Make) -> None:
    sizes = [2 * GIB, 5 * GIB]
    runs = make(ONE, machine=GPU, engines=[{"vllm": {"kv_cache_memory": sizes}}])
    few, many = sorted(run.peak_bytes for run in runs.values() if run.spec.kind == "performance")
    assert many - few == 3 * GIB
    assert many < 0.2 * GPU.memory_bytes


def test_llama_cpp_computes_a_few_tokens_at_once_and_caches_in_16_bits(make: Make) -> None:
    """Each text's cache is rounded up to blocks of 256 tokens."""
    grids = [{"batch_sizes": [8], "prompt_tokens": [tokens], "new_tokens": 16} for tokens in (1000, 2000)]
    few, many = (peak(make(grid, engines=["llamacpp"]), "performance none · llamacpp #1") for grid in grids)
    assert many - few == 8 * (2048 - 1024) * 2 * LAYERS * KEYS * WIDTH * 2


def test_widths_are_those_of_an_estimate(tmp_path: Path, sweeps: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    content = {"models": [f"synthetic:{tmp_path / 'config.json'}"], "methods": ["none"], "measure": {"memory": {}}}
    recipe = load_recipe(sweeps.recipe(content))
    found = widths_of(inspect(recipe.models[0], tmp_path), 1000)
    assert found is not None
    assert (found.hidden, found.inner, found.vocabulary) == (HIDDEN, INNER, VOCABULARY)
    assert type(found) is Widths
    assert found.attention.cache_bytes(1, 1) == 2 * LAYERS * KEYS * WIDTH
