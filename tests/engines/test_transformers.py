"""The transformers engine: what it hands out is what the model itself computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from harness.contracts import LoadRequest
from harness.engines.transformers import TransformersModel, load

TOKENS = torch.arange(2, 34).unsqueeze(0)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def model(tiny: Path):
    loaded = load(LoadRequest(tiny, "float32", "cpu"))
    loaded.probe()
    return loaded


def test_hidden_and_head_make_the_models_own_logits(model, tiny: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.inference_mode():
        expected = plain(TOKENS).logits
        assert model.factored
        torch.testing.assert_close(model.head(model.hidden(TOKENS)), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.logits(TOKENS), expected, rtol=0, atol=1e-5)


def test_decoding_step_by_step_is_the_one_pass(model) -> None:
    with torch.inference_mode():
        whole = model.logits(TOKENS)
        logits, cache = model.prefill(TOKENS[:, :20])
        torch.testing.assert_close(logits, whole[:, 19], rtol=0, atol=1e-4)
        for position in range(20, 32):
            logits, cache = model.decode(TOKENS[:, position : position + 1], cache)
            torch.testing.assert_close(logits, whole[:, position], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "built",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=0.5)),
        lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
    ],
    ids=["soft cap", "logit scale"],
)
def test_what_follows_the_head_belongs_to_it(built) -> None:
    torch.manual_seed(0)
    raw = built().float().eval()
    wrapped = TransformersModel(raw, None)
    wrapped.probe()
    weights = wrapped.output_embedding()
    assert wrapped.factored
    assert weights is not None
    with torch.inference_mode():
        hidden = wrapped.hidden(TOKENS)
        torch.testing.assert_close(wrapped.head(hidden), raw(TOKENS).logits)
        bare = hidden @ weights.weight.T
        assert not torch.allclose(bare, raw(TOKENS).logits)


def test_a_head_that_is_not_the_whole_story_is_found_out(tiny: Path) -> None:
    """A model that does something to its logits that no configuration names must fall back to whole logits."""
    raw = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    inner = raw.forward

    def crooked(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = output.logits * 1.01
        return output

    raw.forward = crooked
    wrapped = TransformersModel(raw, None)
    wrapped.probe()
    assert not wrapped.factored
    assert wrapped.output_embedding() is None


def test_tied_embeddings_are_counted_once(model, tiny: Path) -> None:
    ledger = model.weight_ledger()
    tied = [entry for entry in ledger if entry.tied]
    assert [entry.role for entry in tied] == ["head"]
    parameters = sum(entry.parameters for entry in ledger if not entry.tied and entry.role != "other")
    norms = sum(entry.parameters for entry in ledger if entry.role == "other" and "norm" in entry.name)
    plain = AutoModelForCausalLM.from_pretrained(tiny)
    assert parameters + norms == sum(p.numel() for p in plain.parameters())
    assert all(entry.value_bytes == 4 * entry.parameters for entry in ledger if not entry.tied)


def test_pickled_weights_are_not_loaded(tiny: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny)
    plain.config.save_pretrained(tmp_path)
    torch.save(plain.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load(LoadRequest(tmp_path, "float32", "cpu"))
