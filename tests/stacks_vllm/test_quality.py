"""Hidden states and head of vLLM: against transformers by every run's observers, and against vLLM's own pooling."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

pytestmark = pytest.mark.stack

LENGTHS = [200, 3, 77, 128, 1, 129, 64, 5] * 4
"""32 texts of unequal length, around the size of the cache's blocks and of a step."""
TEXTS = """
def texts(lengths, vocabulary=512):
    draw = np.random.default_rng(1)
    return [draw.integers(2, vocabulary, length).tolist() for length in lengths]
"""
COMPARE = (
    """
import json, sys, tempfile
from pathlib import Path
import numpy as np
import torch
from harness.core.engine import LoadRequest
from harness.core.metric import Windows
from harness.engines.transformers.engine import load
from harness.engines.vllm.engine import VllmParams, imports
from harness.engines.vllm.engine import load as load_vllm
from harness.execution import reference as references
from harness.execution.forward import observe
from harness.metrics.divergence import DivergenceObserver
from harness.metrics.perplexity import Likelihood
"""
    + TEXTS
    + """
folder, lengths, params = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
imports()
rows = [row + [2] for row in texts(lengths)]
count = len(rows)
windows = Windows(rows, [1] * count, [str(i) for i in range(count)],
                  {"tokens_sha256": "", "context": 0, "windows": count})
request = LoadRequest(folder, "float32", "cpu")
with tempfile.TemporaryDirectory() as kept, torch.inference_mode():
    base = load(request)
    base.probe_head()
    references.write(base, windows, Path(kept))
    expected = [base.logits(torch.tensor([row[:-1]]))[0] for row in rows]
    likelihood = Likelihood(windows)
    observe(base, windows, [likelihood], None)
    theirs = likelihood.finish()[0].values
    model = load_vllm(request, VllmParams.model_validate(params))
    model.probe_head()
    divergence, likelihood = DivergenceObserver(windows), Likelihood(windows)
    observe(model, windows, [divergence, likelihood], references.Reference(Path(kept), "cpu"))
    found = {each.metric: each.values for each in divergence.finish()}
    together = model.hidden_of([row[:-1] for row in rows])
    far = max(float((model.head(states) - logits).abs().max()) for states, logits in zip(together, expected))
    alone = [model.hidden_of([row[:-1]])[0] for row in rows[:8]]
    moved = max(float((one - other).abs().max()) for one, other in zip(alone, together))
    answer = {
        "factored": model.factored,
        "kl": list(found["kl"]),
        "top1": min(found["top1_agreement"]),
        "nll": max(abs(a - b) for a, b in zip(theirs, likelihood.finish()[0].values)),
        "logits": far,
        "moved": moved,
        "step_tokens": model.runtime.limits.step_tokens,
        "left": model.runtime.engine.get_num_unfinished_requests(),
        "loudest": max(float(logits.abs().max()) for logits in expected),
    }
    model.close()
print(json.dumps(answer))
"""
)
POOLING = (
    """
import json, os, sys
import numpy as np
from pathlib import Path
from harness.core.engine import LoadRequest
from harness.engines.vllm.engine import VllmParams, arguments, imports
from harness.engines.vllm.engine import load as load_vllm
"""
    + TEXTS
    + """
folder, lengths, out, pooled = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], sys.argv[4] == "pooled"
imports()
rows = texts(lengths)
if pooled:
    from vllm import LLM, PoolingParams
    from vllm.config import PoolerConfig
    llm = LLM(str(folder), runner="pooling", convert="embed", hf_overrides={"head_dtype": "model"}, dtype="float32",
              pooler_config=PoolerConfig(task="token_embed"), enforce_eager=True, kv_cache_memory_bytes=2**28,
              max_model_len=1024, enable_prefix_caching=False)
    prompts = [{"prompt_token_ids": row} for row in rows]
    found = llm.encode(prompts, PoolingParams(use_activation=False), pooling_task="token_embed", use_tqdm=False)
    states = [each.outputs.data.float().numpy() for each in found]
else:
    model = load_vllm(LoadRequest(folder, "float32", "cpu"), VllmParams(kv_cache_memory=2**28))
    states = [each.numpy() for each in model.hidden_of(rows)]
np.savez(out, *states)
print(json.dumps([list(each.shape) for each in states]))
"""
)


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"max_num_batched_tokens": 64, "max_num_seqs": 32}, id="chunks of 64 tokens"),
        pytest.param({"kv_cache_memory": 3 * 2**20, "max_num_seqs": 32}, id="a cache for few texts at once"),
    ],
)
def test_the_unquantized_model_is_the_same_as_in_transformers(
    run_in_stack: Callable[..., Any], tiny_llama: Path, params: dict[str, int]
) -> None:
    """In float32: KL below 1e-8 nat on average and 1e-5 anywhere, whatever vLLM computes together."""
    found = run_in_stack(COMPARE, tiny_llama, json.dumps(LENGTHS), json.dumps(params))
    assert found["factored"]
    assert found["left"] == 0
    assert len(found["kl"]) == sum(LENGTHS)
    assert np.mean(found["kl"]) < 1e-8
    assert max(found["kl"]) < 1e-5
    assert found["top1"] == 1.0
    assert found["nll"] < 1e-5
    assert found["loudest"] > 5  # logits that would show an error
    assert found["logits"] < 1e-3
    assert found["moved"] < 1e-4
    if "max_num_batched_tokens" in params:
        assert found["step_tokens"] == params["max_num_batched_tokens"]


def test_hidden_states_are_those_that_vllm_pools(
    run_in_stack: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """vLLM's own way to return the states of every token, in a process of its own."""
    lengths = json.dumps(LENGTHS[:8])
    for kind in ("read", "pooled"):
        run_in_stack(POOLING, tiny_llama, lengths, tmp_path / kind, kind)
    ours, theirs = (np.load(f"{tmp_path / kind}.npz") for kind in ("read", "pooled"))
    assert len(ours.files) == len(theirs.files) == 8
    for name, length in zip(ours.files, LENGTHS, strict=False):
        assert ours[name].shape == theirs[name].shape == (length, 128)
        assert np.abs(ours[name] - theirs[name]).max() <= 1e-5 * np.abs(theirs[name]).max()


AFTERWARDS = (
    """
import json, sys
from pathlib import Path
import numpy as np
import torch
from harness.core.capability import numbered
from harness.core.engine import LoadRequest
from harness.engines.transformers.engine import load
from harness.engines.vllm.engine import VllmParams, imports
from harness.engines.vllm.engine import load as load_vllm
from harness.errors import UnsupportedError
"""
    + TEXTS
    + """
folder = Path(sys.argv[1])
imports()
rows = texts([20, 7])
request = LoadRequest(folder, "float32", "cpu")
with torch.inference_mode():
    base = load(request)
    expected = [base._model.generate(input_ids=torch.tensor([row]), max_new_tokens=5, do_sample=False,
                                     eos_token_id=None)[0, len(row):].tolist() for row in rows]
    model = load_vllm(request, VllmParams(max_model_len=100))
    model.probe_head()
    before = model.hidden_of(rows)
    refused = []
    for ask in (
        lambda: model.hidden_of([rows[0], [2] * 100]),
        lambda: model.complete(numbered([rows[0], [2] * 100]), 5, [], 0),
    ):
        try:
            ask()
        except UnsupportedError as error:
            refused.append(str(error))
    left = model.runtime.engine.get_num_unfinished_requests()
    after = model.hidden_of(rows)
    written = model.complete(numbered(rows), 5, [], 0, do_sample=False)
    print(json.dumps({"refused": refused, "left": left, "written": written, "expected": expected,
                      "same": all(bool((a == b).all()) for a, b in zip(before, after))}))
    model.close()
"""
)


def test_an_artifact_answers_and_a_refused_text_leaves_nothing_behind(
    run_in_stack: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """An artifact's folder holds probe logits beside the weights, which vLLM must not take for weights."""
    artifact = tmp_path / "artifact"
    shutil.copytree(tiny_llama, artifact)
    save_file({"logits": np.zeros((1, 1), dtype=np.float32)}, artifact / "probe.safetensors")
    found = run_in_stack(AFTERWARDS, artifact)
    assert len(found["refused"]) == 2
    assert all("max_model_len" in reason for reason in found["refused"])
    assert found["left"] == 0
    assert found["same"]
    assert found["written"] == found["expected"]
    assert len({*map(tuple, found["written"])}) == 2
