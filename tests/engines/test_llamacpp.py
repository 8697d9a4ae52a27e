"""The llama.cpp engine on the tiny model, held against transformers; needs the stack's library in this interpreter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.contracts import LoadRequest
from harness.engines.llamacpp import LLAMACPP, LlamaCppModel
from harness.errors import UnsupportedError
from harness.models.headers import GGUF_FILE
from harness.tasks.scoring import Request, score

pytest.importorskip("llama_cpp", reason="run these tests with the interpreter of the stack 'llamacpp'")

TEXT = "The boats had come back before dawn with a poor catch, and the men spoke of the weather."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    out = tmp_path_factory.mktemp("converted")
    assert LLAMACPP.convert is not None
    LLAMACPP.convert(tiny, out, "float32")
    for file in tiny.glob("tokenizer*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> LlamaCppModel:
    found = LLAMACPP.load(LoadRequest(folder, "float32", "cpu"))
    assert isinstance(found, LlamaCppModel)
    return found


@pytest.fixture(scope="module")
def plain(tiny: Path):
    return AutoModelForCausalLM.from_pretrained(tiny).eval()


@pytest.fixture(scope="module")
def ids(tiny: Path) -> torch.Tensor:
    return torch.tensor([AutoTokenizer.from_pretrained(tiny).encode(TEXT * 40)[:600]])


def test_logits_are_those_of_transformers(model: LlamaCppModel, plain, ids: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = plain(ids).logits
    found = model.logits(ids)
    assert found.shape == expected.shape, "more tokens than one call takes"
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-3


def test_rows_of_a_batch_do_not_see_one_another(model: LlamaCppModel, ids: torch.Tensor) -> None:
    both = torch.stack([ids[0, :50], ids[0, 50:100]])
    alone = torch.cat([model.logits(both[:1]), model.logits(both[1:])])
    assert torch.allclose(model.logits(both), alone, atol=1e-4)


def test_decoding_continues_the_prefill(model: LlamaCppModel, ids: torch.Tensor) -> None:
    rows = torch.stack([ids[0, :20], ids[0, 30:50]])
    expected = model.logits(rows)
    with model.decoder("eager", rows[:, :17], 3) as decoder:
        logits, cache = decoder.prefill(rows[:, :17])
        assert torch.allclose(logits, expected[:, 16], atol=1e-3)
        for place in range(17, 20):
            logits, cache = decoder.decode(rows[:, place : place + 1], cache)
            assert torch.allclose(logits, expected[:, place], atol=1e-3)
    with pytest.raises(UnsupportedError, match="leave out decode_mode"), model.decoder("compiled", rows, 1):
        pass


def test_the_cache_is_a_key_and_a_value_of_every_token_in_float16(model: LlamaCppModel, ids: torch.Tensor) -> None:
    from harness.numerics.kv_cache import bytes_per_token, element_bytes, stored_bytes

    _, cache = model.prefill(ids[:, :10])
    assert element_bytes(cache) == 2
    assert stored_bytes(cache) == 10 * bytes_per_token(layers=4, kv_heads=2, head_dim=16, element_bytes=2)


def test_greedy_text_is_that_of_transformers(model: LlamaCppModel, plain, ids: torch.Tensor) -> None:
    prompts = torch.stack([ids[0, :20], torch.cat([torch.zeros(5, dtype=torch.int64), ids[0, 40:55]])])
    mask = torch.ones_like(prompts)
    mask[1, :5] = 0
    settings = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    expected = plain.generate(input_ids=prompts, attention_mask=mask, **settings)[:, 20:]
    found, ended, past = model.generate(prompts, mask, None, lambda written: torch.zeros(2).bool(), **settings)
    assert torch.equal(found, expected)
    assert past is None
    assert not bool(ended.any())
    with pytest.raises(UnsupportedError, match="temperature"):
        model.generate(prompts, mask, None, lambda written: torch.zeros(2).bool(), **settings, temperature=0.7)


def test_choices_are_scored_as_their_tokens_logits_say(model: LlamaCppModel, ids: torch.Tensor) -> None:
    row = ids[0, :30].tolist()
    (one,) = score(model, [Request(tuple(row[:20]), tuple(row[20:]))], "batched", 384)
    logprobs = model.logits(ids[:, :29])[0].log_softmax(-1)
    expected = sum(float(logprobs[place - 1, row[place]]) for place in range(20, 30))
    assert one.loglikelihood == pytest.approx(expected, abs=1e-3)


def test_what_is_stored_and_what_runs_is_told_by_layer(model: LlamaCppModel, folder: Path) -> None:
    assert sum(entry.value_bytes for entry in model.weight_ledger()) < (folder / GGUF_FILE).stat().st_size
    roles = Counter(entry.role for entry in model.weight_ledger())
    assert roles["linear"] == 4 * 7
    assert model.kernels()["float32 on CPU"] == 28
    assert dict(model.families()) == {"plain": 28}
    assert model.context_length == 512


def test_what_llama_cpp_does_not_load_is_told_in_its_own_words(tmp_path: Path, folder: Path) -> None:
    content = (folder / GGUF_FILE).read_bytes()
    (tmp_path / GGUF_FILE).write_bytes(content.replace(b"llama.block_count", b"llama.block_kount"))
    with pytest.raises(UnsupportedError, match=r"llama.cpp does not load it: .*block_count"):
        LLAMACPP.load(LoadRequest(tmp_path, "float32", "cpu"))
    (tmp_path / GGUF_FILE).write_bytes(content[:-1000])
    with pytest.raises(UnsupportedError, match="not a whole GGUF file"):
        LLAMACPP.load(LoadRequest(tmp_path, "float32", "cpu"))
