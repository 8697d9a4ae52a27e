"""A real vLLM server as an endpoint: its answers are those of transformers in this process, and it takes a load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from serve_until import served

from harness.api.plan import plan
from harness.core.capability import Endpoint, numbered
from harness.core.engine import LoadRequest
from harness.engines.endpoint.engine import ENDPOINT, EndpointModel, EndpointParams
from harness.recipe import load_recipe
from harness.stacks import Stack, Stacks
from harness.stacks.build import environment

pytestmark = pytest.mark.stack

TEXTS = ([0, 5, 38, 9, 66, 465, 12, 400, 17], [0, 300, 301], [7, 7, 7, 7, 7, 7])
NEW = 12


@pytest.fixture(scope="module")
def server(vllm_stack: Stack, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("vllm_server")
    params = {"max_num_seqs": 4, "max_model_len": 128, "kv_cache_memory": 2**26}
    with served(vllm_stack.python, environment(folder), "vllm", tiny_llama, "float32", folder, **params) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def model(server: Endpoint, tiny_llama: Path) -> EndpointModel:
    loaded = ENDPOINT.load(LoadRequest(tiny_llama, "float32", "cpu", served=server), EndpointParams(retries=0))
    assert isinstance(loaded, EndpointModel)
    return loaded


@pytest.fixture(scope="module")
def here(tiny_llama: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)


def test_log_likelihoods_are_those_of_transformers(model: EndpointModel, here: torch.nn.Module) -> None:
    assert model.scored_by == "prompt_logprobs"
    assert model.context_length == 126
    for tokens, found in zip(TEXTS, model.score(TEXTS, 3), strict=True):
        with torch.inference_mode():
            logits = here(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        own = logits.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        assert found.logarithms == pytest.approx(own.tolist(), abs=2e-4)
        assert list(found.likeliest) == (logits.argmax(-1) == torch.tensor(tokens[1:])).tolist()


def test_answers_are_those_of_transformers_token_by_token(model: EndpointModel, here: torch.nn.Module) -> None:
    assert model.way == "tokens"
    for tokens, written in zip(TEXTS, model.complete(numbered(TEXTS), NEW, [], 0), strict=True):
        with torch.inference_mode():
            whole = here.generate(torch.tensor([tokens]), max_new_tokens=NEW, do_sample=False)  # type: ignore[operator]
        assert written == whole[0, len(tokens) :].tolist()


def test_it_is_put_under_load(sweeps, server: Endpoint, tiny_llama: Path, stacks_with: Callable[[str], Stacks]) -> None:
    """As a user's recipe asks for it: each request is answered whole, and the server's own counts are read."""
    served = {"served": {"url": server.url, "model": server.model}}
    recipe = {
        "models": [{"id": str(tiny_llama), "dtype": "float32", "label": "tiny"}],
        "engines": ["endpoint"],
        "baseline": served,
        "methods": [served],
        "measure": {
            "serving": {
                "concurrency": [1, 2],
                "prompts": {"tokens": 16},
                "new_tokens": 4,
                "warmup": 1,
                "requests": 4,
                "slo": {"e2e": "10m"},
            }
        },
        "device": "cpu",
        "threads": 1,
    }
    stacks = stacks_with("vllm")
    records = sweeps.make(plan(load_recipe(sweeps.recipe(recipe)), stacks=stacks), stacks=stacks)
    (outcome,) = (each.outcome for each in records if each.spec.kind == "serve")
    assert outcome.status == "ok", outcome.failure
    assert "remote" in {each.code for each in outcome.labels}
    values = {
        name: [each.values for each in outcome.measured(f"serving_{name}")]
        for name in ("failures", "output_tokens", "met", "preemptions", "running", "largest_load")
    }
    assert values["failures"] == values["preemptions"] == [(0.0,), (0.0,)]
    assert values["output_tokens"] == [(4.0,) * 4] * 2
    assert values["met"] == [(1.0,) * 4] * 2
    assert values["largest_load"] == [(2.0,)]
    assert all(running <= level for (running,), level in zip(values["running"], (1, 2), strict=True))
