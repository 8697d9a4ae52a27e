"""Drawn answers, tool calls and a generated text on the engines of other stacks, beside transformers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from own_tasks import writing
from transformers import LlamaConfig, LlamaForCausalLM

from harness.api.plan import plan
from harness.core.record import Measurement, RunRecord
from harness.recipe import load_recipe
from harness.stacks import Stacks

pytestmark = pytest.mark.heavy(minutes=2)

ENGINES = {"llamacpp": "llamacpp", "vllm": {"vllm": {"max_num_seqs": 8, "max_num_batched_tokens": 256}}}
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
"""Heads of 64, for which both engines have kernels."""
QUESTIONS, SAMPLES, NEW, TOOL_QUESTIONS = 4, 3, 12, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A random Llama with room for the prompts of tool calls, and the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("answering")
    torch.manual_seed(0)
    shape = {**SIZES, "vocab_size": 512, "initializer_range": 0.1, "max_position_embeddings": 2048}
    LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, folder / file.name)
    return folder


@pytest.fixture(scope="module", params=list(ENGINES))
def both(
    request: pytest.FixtureRequest,
    stacks_with: Callable[[str], Stacks],
    sweep_type: type,
    tmp_path_factory: pytest.TempPathFactory,
    model: Path,
) -> Callable[..., tuple[RunRecord, RunRecord]]:
    """The runs of transformers and of the other engine, by kind and by the name of a task."""
    stacks = stacks_with(request.param)
    sweeps = sweep_type(tmp_path_factory.mktemp(request.param))
    task = writing(
        sweeps.folder,
        "sums",
        ({"a": number, "target": number + 1} for number in range(QUESTIONS)),
        doc_to_text="What is {{a}} + 1? It is",
        generation_kwargs={"until": ["\n\n"], "do_sample": False},
    )
    content: dict[str, Any] = {
        "models": [{"id": str(model), "dtype": "float32", "label": "random"}],
        "engines": ["transformers", ENGINES[request.param]],
        "methods": ["none"],
        "threads": 1,
        "measure": {
            "perplexity": {"text": {"generated": {"answers": 4, "tokens": 160}}},
            "divergence": {},
            "tasks": [
                {"name": str(task), "samples": SAMPLES, "temperature": 0.8, "top_p": 0.9, "new_tokens": NEW},
                {"name": "tool-calls-02", "limit": TOOL_QUESTIONS, "new_tokens": NEW},
            ],
        },
    }
    records = sweeps.make(plan(load_recipe(sweeps.recipe(content)), stacks=stacks), stacks=stacks)
    assert {record.status for record in records} == {"ok"}, [record.outcome.failure for record in records]

    def both(kind: str, name: str | None = None) -> tuple[RunRecord, RunRecord]:
        found = {
            record.spec.engine: record
            for record in records
            if record.spec.kind == kind and (name is None or record.spec.task.name == name)
        }
        return found["transformers"], found[request.param]

    return both


def score(run: RunRecord, name: str) -> Measurement:
    (found,) = (each for each in run.outcome.measured("task_score") if each.protocol["score"] == name)
    return found


def texts(run: RunRecord) -> dict[str, str]:
    found = run.find("answer_text")
    return dict(zip(found.cluster_ids, found.item_ids, strict=True))


def test_the_baselines_text_is_scored_token_by_token(both: Callable[..., tuple[RunRecord, RunRecord]]) -> None:
    base, other = (run.find("kl") for run in both("quality"))
    assert other.protocol["protocol"] == "generated"
    assert other.protocol == base.protocol
    assert other.item_ids == base.item_ids
    assert 0 < fmean(other.values) < 1e-4, "the engine's own difference"


def test_samples_are_nested_in_questions_and_kept_with_all_that_happened(
    both: Callable[..., tuple[RunRecord, RunRecord]],
) -> None:
    base, other = both("task", "sums")
    ids = [f"sums:{question}#{sample}" for sample in range(SAMPLES) for question in range(QUESTIONS)]
    for run in (base, other):
        found = score(run, "exact_match")
        assert list(found.item_ids) == ids
        assert list(found.cluster_ids) == [item.partition("#")[0] for item in ids]
        assert run.find("answer_tokens").item_ids == found.item_ids
        assert max(run.find("answer_tokens").values) == NEW
        assert set(run.find("answer_truncated").values) <= {0.0, 1.0}
        assert len(set(texts(run).values())) > QUESTIONS * SAMPLES / 2, "samples of a question are drawn apart"
    assert score(base, "exact_match").protocol == score(other, "exact_match").protocol
    if other.spec.engine == "llamacpp":
        same = [text == texts(other)[item] for item, text in texts(base).items()]
        assert fmean(same) > 0.7, "the randomness of a sample is the same on both engines"


def test_tool_calls_are_asked_and_read_alike(both: Callable[..., tuple[RunRecord, RunRecord]]) -> None:
    base, other = both("task", "tool-calls-02")
    for name in ("valid_json", "valid_schema", "right_tool", "exact_match"):
        mine, theirs = score(other, name), score(base, name)
        assert mine.protocol == theirs.protocol, "the hashes of prompts among it"
        assert mine.item_ids == theirs.item_ids
        assert len(mine.values) == TOOL_QUESTIONS
    assert texts(other).keys() == texts(base).keys()
    assert fmean(text == texts(other)[item] for item, text in texts(base).items()) >= 0.5, "the likeliest tokens"
