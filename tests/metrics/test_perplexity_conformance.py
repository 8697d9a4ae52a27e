"""Each perplexity protocol against what it reproduces: lm-eval and llama.cpp themselves, and plain loops.

The same by hand on a larger model: benchmarks/perplexity_conformance.py, of which this file uses the references.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from harness.core.record import Measurement
from harness.text.protocols import preset

pytestmark = pytest.mark.heavy

SAME = 1e-4
"""Relative: the same arithmetic in float32."""
SEEN = 1e-3
"""What a fault in a protocol changes at the least on this text: ten times what passes for the same."""
CONTEXT = 128


@pytest.fixture(scope="module")
def text(shared: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two pages of WikiText-2's test split, the second cut off."""
    content = shared("data/wikitext2/wiki.test.raw").read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("text") / "wiki.raw"
    path.write_text(content[: content.index("\n", 12_000) + 1], encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def both(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def perplexity(references: ModuleType, found: dict[str, Measurement]) -> float:
    return math.exp(references.mean(found["nll"]))


def test_gptq(references: ModuleType, tiny: Path, text: Path) -> None:
    expected = references.plain_gptq(*both(tiny), text, CONTEXT, 8)
    assert perplexity(references, references.ours(tiny, text, "gptq", CONTEXT, windows=8)) == pytest.approx(
        expected, rel=SAME
    )


@pytest.mark.thorough
def test_gptq_with_a_wrong_joiner_a_shifted_window_or_no_bos_is_another_figure(
    references: ModuleType, tiny: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the test above would see them."""
    expected = references.plain_gptq(*both(tiny), text, CONTEXT, 8)
    wrong = {
        "windows one token wider": references.ours(tiny, text, "gptq", CONTEXT + 1, windows=8),
        "no BOS": references.ours(tiny, text, "gptq", CONTEXT, windows=8, bos="never"),
    }
    monkeypatch.setattr(preset, "JOINER", "\n")
    wrong["joiner"] = references.ours(tiny, text, "gptq", CONTEXT, windows=8)
    for fault, found in wrong.items():
        assert perplexity(references, found) != pytest.approx(expected, rel=SEEN), fault


def test_sliding(references: ModuleType, tiny: Path, text: Path) -> None:
    """Window by window to the end of the text, whose last window is shorter."""
    nll = references.ours(tiny, text, "sliding", CONTEXT, stride=48)["nll"]
    losses, counts = zip(*references.plain_sliding(*both(tiny), text, CONTEXT, 48), strict=True)
    assert nll.weights == counts
    assert set(counts[1:-1]) == {48}
    assert nll.values == pytest.approx(losses, rel=SAME)
    other = references.ours(tiny, text, "sliding", CONTEXT, stride=47)
    assert perplexity(references, other) != pytest.approx(math.exp(references.mean(nll)), rel=SAME)


def test_llama_cpp_beside_its_own_loop(references: ModuleType, tiny: Path, text: Path) -> None:
    model, tokenizer = both(tiny)
    ids = tokenizer(text.read_text(encoding="utf-8").removesuffix("\n")).input_ids
    found = perplexity(references, references.ours(tiny, text, "llama.cpp", CONTEXT, windows=16))
    assert found == pytest.approx(references.plain_llama_cpp(model, ids, ids[0], CONTEXT, 16), rel=SAME)
    without = references.plain_llama_cpp(model, ids, None, CONTEXT, 16)
    assert found != pytest.approx(without, rel=SAME)
    shifted = references.plain_llama_cpp(model, ids[1:], ids[0], CONTEXT, 16)
    assert found != pytest.approx(shifted, rel=SEEN)


def test_llama_cpp_beside_llama_perplexity(references: ModuleType, tiny: Path, text: Path, tmp_path: Path) -> None:
    binary = references.llama_binary()
    if binary is None:
        pytest.skip(f"needs llama.cpp's llama-perplexity on PATH (or ${references.BINARY} to name it)")
    pytest.importorskip("gguf")
    references.write_gguf(tiny, tmp_path / "tiny.gguf")
    expected = references.llama_perplexity(binary, tmp_path / "tiny.gguf", text, CONTEXT, 16)
    found = perplexity(references, references.ours(tiny, text, "llama.cpp", CONTEXT, windows=16))
    assert found == pytest.approx(expected, rel=SAME)


@pytest.mark.thorough
@pytest.mark.parametrize(("bos", "add_bos_token"), [("auto", None), ("never", False)])
def test_lm_eval(references: ModuleType, tiny: Path, text: Path, bos: str, add_bos_token: bool | None) -> None:
    pytest.importorskip("lm_eval")
    pages = references.hub_pages(text)
    assert len(pages) == 2
    expected = references.lm_eval_wikitext(*both(tiny), pages, CONTEXT, add_bos_token)
    found = references.ours(tiny, text, "lm-eval", CONTEXT, bos=bos)
    byte = references.mean(found["nll_per_byte"])
    assert math.exp(references.mean(found["nll_per_word"])) == pytest.approx(expected["word_perplexity"], rel=SAME)
    assert math.exp(byte) == pytest.approx(expected["byte_perplexity"], rel=SAME)
    assert byte / math.log(2) == pytest.approx(expected["bits_per_byte"], rel=SAME)
    other = references.mean(references.ours(tiny, text, "lm-eval", CONTEXT - 1, bos=bos)["nll_per_word"])
    assert math.exp(other) != pytest.approx(expected["word_perplexity"], rel=SEEN)


@pytest.mark.thorough
def test_a_context_of_every_position_that_a_model_has(
    references: ModuleType, tiny: Path, text: Path, tmp_path: Path
) -> None:
    """lm-eval's windows hold one token more than the context. The model must not read it: it has no place for it."""
    pytest.importorskip("lm_eval")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=512, n_positions=64, n_embd=16, n_layer=1, n_head=1)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    pages = references.hub_pages(text)
    expected = references.lm_eval_wikitext(model, tokenizer, pages, 64)["byte_perplexity"]
    byte = references.ours(tmp_path, text, "lm-eval", 64)["nll_per_byte"]
    assert math.exp(references.mean(byte)) == pytest.approx(expected, rel=SAME)


def test_documents_are_what_is_independent_in_lm_evals_protocol(references: ModuleType, tiny: Path, text: Path) -> None:
    found = references.ours(tiny, text, "lm-eval", CONTEXT)
    nll, byte = found["nll"], found["nll_per_byte"]
    assert set(nll.cluster_ids) == {"0", "1"}
    assert byte.item_ids == ("0", "1")
    assert sum(byte.weights) == sum(len(page.encode()) for page in references.hub_pages(text))
    assert sum(v * w for v, w in zip(byte.values, byte.weights, strict=True)) == pytest.approx(
        sum(v * w for v, w in zip(nll.values, nll.weights, strict=True))
    )
