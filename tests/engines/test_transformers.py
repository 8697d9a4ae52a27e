"""The transformers engine: what it hands out is what the model itself computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from harness.core.engine import LoadRequest
from harness.engines.transformers.engine import TransformersModel, TransformersParams, load

pytestmark = pytest.mark.heavy

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
    loaded.probe_head()
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
    wrapped.probe_head()
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
    wrapped.probe_head()
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


def test_its_own_attention_comes_before_the_recipes(tiny: Path) -> None:
    request = LoadRequest(tiny, "float32", "cpu", attention="sdpa")
    models = {kind: load(request, TransformersParams(attention=kind)) for kind in (None, "eager")}
    assert {kind: model.attention for kind, model in models.items()} == {None: "sdpa", "eager": "eager"}
    with torch.inference_mode():
        torch.testing.assert_close(*(model.logits(TOKENS) for model in models.values()), rtol=0, atol=1e-4)


def test_pickled_weights_are_not_loaded(tiny: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny)
    plain.config.save_pretrained(tmp_path)
    torch.save(plain.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load(LoadRequest(tmp_path, "float32", "cpu"))


STEM, ONE, OTHER = TOKENS[0, :12], TOKENS[0, 12:20], TOKENS[0, 20:]
VISIBLE_UNTIL = torch.tensor([32] * 12 + [20] * 8 + [32] * 12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_branches_are_what_each_is_alone(tiny: Path, attention: str) -> None:
    model = load(LoadRequest(tiny, "float32", "cpu", attention=attention))
    model.probe_head()
    assert model.can_branch()
    with torch.inference_mode():
        first, second = (model.hidden(torch.cat([STEM, branch])[None])[0] for branch in (ONE, OTHER))
        expected = torch.cat([first, second[12:]])
        torch.testing.assert_close(model.forward_tree(TOKENS[0], VISIBLE_UNTIL, None), expected, rtol=0, atol=1e-4)
        states, prefix = model.extend_prefix(STEM[:5], None)
        torch.testing.assert_close(states, expected[:5], rtol=0, atol=1e-4)
        states, longer = model.extend_prefix(STEM[5:], prefix)
        torch.testing.assert_close(states, expected[5:12], rtol=0, atol=1e-4)
        for _ in range(2):  # neither prefix cache has changed
            torch.testing.assert_close(
                model.forward_tree(TOKENS[0, 12:], VISIBLE_UNTIL[12:] - 12, longer), expected[12:], rtol=0, atol=1e-4
            )
            torch.testing.assert_close(
                model.forward_tree(TOKENS[0, 5:], VISIBLE_UNTIL[5:] - 5, prefix), expected[5:], rtol=0, atol=1e-4
            )


@pytest.mark.parametrize(
    ("built", "branches"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)), True),
        (lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)), True),
        (lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=512)), False),
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL)), False),
        (lambda: BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64)), False),
    ],
    ids=["learned positions", "rotary positions", "sliding window", "some windows", "positions from the mask"],
)
def test_who_can_branch_is_found_by_trying(built, branches: bool) -> None:
    torch.manual_seed(0)
    wrapped = TransformersModel(built().float().eval(), None)
    wrapped.probe_head()
    assert wrapped.factored
    assert wrapped.can_branch() == branches


def test_a_model_that_takes_positions_from_the_order_does_not_branch(tiny: Path) -> None:
    raw = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    inner = raw.model.forward
    raw.model.forward = lambda *args, position_ids=None, **kwargs: inner(*args, **kwargs)
    wrapped = TransformersModel(raw, None)
    wrapped.probe_head()
    assert wrapped.factored
    assert not wrapped.can_branch()


def written(model, tokens: torch.Tensor, mask: torch.Tensor, prefix=None, steps: int = 6):
    def stop(found: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(found), dtype=torch.bool)

    return model.generate(tokens, mask, prefix, stop, max_new_tokens=steps, do_sample=False, pad_token_id=1)


def test_writing_goes_on_with_a_past_and_without_the_rows_that_left(model) -> None:
    prompts = torch.stack([TOKENS[0, :10], TOKENS[0, 10:20], TOKENS[0, 20:30]])
    mask = torch.ones_like(prompts)
    with torch.inference_mode():
        whole, _, _ = written(model, prompts, mask, steps=8)
        begun, _, prefix = written(model, prompts, mask, steps=3)
        kept = torch.tensor([0, 2])
        longer = torch.cat([prompts, begun], dim=1)[kept]
        rest, _, _ = written(model, longer, torch.ones_like(longer), model.select_prefix(prefix, kept, 12), steps=5)
    assert torch.cat([begun[kept], rest], dim=1).tolist() == whole[kept].tolist()


def test_prompts_of_unlike_length_are_joined_and_lose_their_padding_again(model) -> None:
    short, long = TOKENS[0, 12:17], TOKENS[0, :12]
    padded = torch.stack([torch.cat([torch.zeros(7, dtype=torch.int64), short]), long])
    mask = torch.ones_like(padded)
    mask[0, :7] = 0
    with torch.inference_mode():
        prefixes = [model.extend_prefix(prompt[:-1], None)[1] for prompt in (short, long)]
        together, _, prefix = written(model, padded, mask, model.join_prefixes(prefixes), steps=4)
        singly = [written(model, prompt[None], torch.ones(1, len(prompt)), steps=8)[0][0] for prompt in (short, long)]
        assert together.tolist() == [each[:4].tolist() for each in singly]
        rest = torch.cat([short, together[0]])[None]
        prefix = model.select_prefix(prefix, torch.tensor([0]), len(short) + 3)
        assert prefix.get_seq_length() == len(short) + 3
        assert written(model, rest, torch.ones_like(rest), prefix, steps=4)[0][0].tolist() == singly[0][4:].tolist()


def test_who_wrote_the_models_own_end_is_told(tiny: Path) -> None:
    raw = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model = TransformersModel(raw, None)
    prompts = torch.stack([TOKENS[0, :10], TOKENS[0, 10:20]])
    found, ended, _ = written(model, prompts, torch.ones_like(prompts))
    assert not ended.any()
    raw.generation_config.eos_token_id = int(found[0, 2])
    again, ended, _ = written(model, prompts, torch.ones_like(prompts))
    assert ended.tolist() == [True, int(found[0, 2]) in again[1].tolist()]
