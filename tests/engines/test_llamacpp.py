"""The llama.cpp engine on the tiny model, held against transformers; needs the stack 'llamacpp'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, quants
from kernel_families import families
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from harness.core.capability import Prompt, numbered
from harness.core.engine import LoadRequest
from harness.engines.llamacpp.engine import LLAMACPP, LlamaCppModel, LlamaCppParams
from harness.engines.transformers.engine import TransformersModel
from harness.errors import UnsupportedError
from harness.libraries.llamacpp import Piece
from harness.models.headers import GGUF_FILE
from harness.numerics.kv_cache import bytes_per_token, element_bytes, stored_bytes
from harness.tasks.sampling import Sampling
from harness.tasks.scoring import Request, score

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("llama_cpp")]

TEXT = "The boats had come back before dawn with a poor catch, and the men spoke of the weather."


@pytest.fixture(scope="module")
def folder(llama_cpp: ModuleType, tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    out = tmp_path_factory.mktemp("converted")
    assert LLAMACPP.convert is not None
    LLAMACPP.convert(tiny, out, "float32")
    for file in tiny.glob("tokenizer*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> LlamaCppModel:
    found = LLAMACPP.load(LoadRequest(folder, "float32", "cpu"), LLAMACPP.params())
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
    _, cache = model.prefill(ids[:, :10])
    assert element_bytes(cache) == 2
    assert stored_bytes(cache) == 10 * bytes_per_token(layers=4, kv_heads=2, head_dim=16, element_bytes=2)


LENGTHS = (20, 3, 11, 1, 7, 20, 2, 13, 5, 9)


@pytest.fixture(scope="module")
def prompts(ids: torch.Tensor) -> list[Prompt]:
    starts = [ids[0, 17 * number :].tolist() for number in range(len(LENGTHS))]
    return numbered(start[:length] for start, length in zip(starts, LENGTHS, strict=True))


def held(model: LlamaCppModel) -> list[int]:
    """The tokens of each sequence in the cache."""
    api, memory = model._runtime._api, model._runtime._memory
    return [api.llama_memory_seq_pos_max(memory, sequence) + 1 for sequence in range(model._runtime._rows)]


def test_greedy_text_is_that_of_transformers(model: LlamaCppModel, plain: Any, prompts: list[Prompt]) -> None:
    found = model.complete(prompts, 12, [], 0, do_sample=False)
    for prompt, written in zip(prompts, found, strict=True):
        asked = torch.tensor([prompt.tokens])
        whole = plain.generate(asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=12)
        assert written == whole[0, len(prompt.tokens) :].tolist()
    assert set(held(model)) == {0}


DRAWN = Sampling(1, 0.8, 0.95, 5)


@pytest.mark.parametrize("settings", [{"do_sample": False}, DRAWN.settings], ids=["likeliest", "drawn"])
def test_an_answer_is_the_same_alone_and_where_others_come_and_go(
    folder: Path, prompts: list[Prompt], settings: dict[str, Any]
) -> None:
    """Three slots for ten texts, which end at different times: new prompts share steps with running texts."""
    model = load(folder, slots=3)
    steps: list[list[int]] = []
    feed = model._runtime.feed

    def counted(pieces: Sequence[Piece]) -> torch.Tensor:
        steps.append([len(piece.tokens) for piece in pieces])
        return feed(pieces)

    model._runtime.feed = counted  # type: ignore[method-assign]
    stops = [".", " the", ","]
    together = model.complete(prompts, 24, stops, 5, **settings)
    lengths = [len(text) for text in together]
    assert len(set(lengths)) > 3
    assert sum(map(len, steps)) == sum(lengths)
    assert sum(map(sum, steps)) == sum(LENGTHS) + sum(lengths) - len(LENGTHS)
    assert any(1 in step and max(step) > 1 for step in steps[1:]), "a prompt was read beside running texts"
    assert {len(step) for step in steps} == {1, 2, 3}
    assert held(model) == [0, 0, 0]
    alone = [model.complete([prompt], 24, stops, 5, **settings)[0] for prompt in prompts]
    assert together == alone
    assert model.complete(prompts[::-1], 24, stops, 5, **settings) == alone[::-1]
    model.close()


def test_samples_are_drawn_by_the_noise_of_transformers(
    model: LlamaCppModel, plain: Any, tiny: Path, prompts: list[Prompt]
) -> None:
    """They part where the engines round a logit otherwise, which is rare."""
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'qharness[eval]'")
    from harness.tasks.generating import WritingRules, generate
    from harness.tasks.scoring import Effort

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.pad_token_id = tokenizer.eos_token_id
    other = TransformersModel(plain, tokenizer)
    other.probe_head()
    asked = [(tuple(each.tokens), {"until": ["."], "max_gen_toks": 16}) for each in prompts if len(each.tokens) > 2]
    ours, theirs = (
        [answer.tokens for answer in generate(writer, tokenizer, asked, 512, 16, Effort(), WritingRules(5, DRAWN))]
        for writer in (model, other)
    )
    assert len(set(ours)) == len(asked)
    assert sum(own == their for own, their in zip(ours, theirs, strict=True)) >= len(asked) - 1


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
    assert families(model) == {"plain": 28}
    assert model.context_length == 512


def test_what_llama_cpp_does_not_load_is_told_in_its_own_words(tmp_path: Path, folder: Path) -> None:
    content = (folder / GGUF_FILE).read_bytes()
    (tmp_path / GGUF_FILE).write_bytes(content.replace(b"llama.block_count", b"llama.block_kount"))
    with pytest.raises(UnsupportedError, match=r"llama.cpp does not load it: .*block_count"):
        LLAMACPP.load(LoadRequest(tmp_path, "float32", "cpu"), LLAMACPP.params())
    (tmp_path / GGUF_FILE).write_bytes(content[:-1000])
    with pytest.raises(UnsupportedError, match="cut short or damaged"):
        LLAMACPP.load(LoadRequest(tmp_path, "float32", "cpu"), LLAMACPP.params())


@pytest.fixture(scope="module")
def wider(llama_cpp: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of random weights and its GGUF. Its heads have 32 numbers, as llama.cpp's blocks have."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64, max_position_embeddings=512, initializer_range=0.3))
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wider")
    model.save_pretrained(source)
    assert LLAMACPP.convert is not None
    LLAMACPP.convert(source, out, "float32")
    return source, out


def load(folder: Path, kind: str = "model", **own: Any) -> LlamaCppModel:
    request = LoadRequest(folder, "float32", "cpu", kv_cache=kind)  # type: ignore[arg-type]
    found = LLAMACPP.load(request, LlamaCppParams(**own))
    assert isinstance(found, LlamaCppModel)
    return found


def kept_bytes(model: LlamaCppModel, tokens: torch.Tensor) -> int:
    """What llama.cpp itself needs to keep a sequence's cache."""
    model.prefill(tokens)
    runtime = model._runtime
    return int(runtime._api.llama_state_seq_get_size(runtime._context, 0))


def rounded(numbers: torch.Tensor, kind: str) -> torch.Tensor:
    """Numbers as a type of ggml keeps them, by gguf's own arithmetic."""
    held = GGMLQuantizationType[kind]
    codes = quants.quantize(numbers.contiguous().numpy(), held)
    return torch.from_numpy(quants.dequantize(codes, held).reshape(numbers.shape))


@pytest.mark.parametrize(("kind", "stored", "block"), [("int8", "Q8_0", 34), ("int4", "Q4_0", 18)])
def test_a_cache_in_fewer_bits_is_read_and_takes_what_llama_cpp_keeps(
    wider: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, kind: str, stored: str, block: int
) -> None:
    """Beside transformers with every key and value rounded, and on a CPU with queries of 8 bits too."""
    source, folder = wider
    tokens = torch.randint(64, (1, 60), generator=torch.Generator().manual_seed(1))
    plain = AutoModelForCausalLM.from_pretrained(source).eval()
    with torch.inference_mode():
        exact = plain(tokens).logits
        turn, keep = modeling_llama.apply_rotary_pos_emb, DynamicCache.update

        def turned(q: torch.Tensor, k: torch.Tensor, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
            q, k = turn(q, k, *given)
            return rounded(q, "Q8_0"), k

        def kept(cache: Any, k: torch.Tensor, v: torch.Tensor, *given: Any) -> Any:
            return keep(cache, rounded(k, stored), rounded(v, stored), *given)

        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", turned)
        monkeypatch.setattr(DynamicCache, "update", kept)
        expected = plain(tokens, use_cache=True).logits
    packed = load(folder, kind)
    found = packed.logits(tokens)
    far = (expected - exact).norm()
    assert far > 0.01 * exact.norm(), "the cache is read in one pass over a text too"
    assert (found - expected).norm() < 0.01 * far
    assert torch.equal(packed.own_cache_logits(tokens), load(folder, "model").logits(tokens))
    assert torch.equal(packed.logits(tokens), found), "and then with its own again"
    _, cache = packed.prefill(tokens)
    numbers = 2 * 2 * 64  # keys and values of two layers
    assert stored_bytes(cache) == 60 * numbers // 32 * block
    a_token = (kept_bytes(packed, tokens) - kept_bytes(packed, tokens[:, :20])) / 40
    assert 0 <= a_token - numbers / 32 * block <= 16, "but for a few bytes that say where the token stands"


def test_a_cache_that_llama_cpp_does_not_keep_is_unsupported(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="keeps no fp8"):
        load(folder, "fp8")
    with pytest.raises(UnsupportedError, match="does not divide n_embd_head_k=16"):
        load(folder, "int8").logits(torch.tensor([[1, 2]]))


def test_a_file_of_a_later_version_or_of_an_unknown_model_is_told(tmp_path: Path, folder: Path) -> None:
    content = (folder / GGUF_FILE).read_bytes()
    (tmp_path / GGUF_FILE).write_bytes(content[:4] + (99).to_bytes(4, "little") + content[8:])
    with pytest.raises(UnsupportedError, match="version 99"):
        LLAMACPP.load(LoadRequest(tmp_path, "float32", "cpu"), LLAMACPP.params())
    (tmp_path / GGUF_FILE).write_bytes(content.replace(b"llama", b"lhama"))
    with pytest.raises(UnsupportedError, match="unknown model architecture: 'lhama'"):
        LLAMACPP.load(LoadRequest(tmp_path, "float32", "cpu"), LLAMACPP.params())


def test_its_parameters_reach_llama_cpp(folder: Path, model: LlamaCppModel, ids: torch.Tensor) -> None:
    """As its own functions report them; they may change the speed and the rounding, and not what is computed."""
    expected = model.logits(ids)
    for own in (
        {"threads": 1},
        {"threads": 2, "ubatch": 32},
        {"flash_attention": "enabled"},
        {"flash_attention": "disabled"},
    ):
        tuned = load(folder, **own)
        found = tuned.logits(ids)
        assert float((found - expected).norm() / expected.norm()) < 1e-3
        runtime = tuned._runtime
        api, context = runtime._api, runtime._context
        assert tuned.threads == api.llama_n_threads(context) == api.llama_n_threads_batch(context)
        assert tuned.threads == own.get("threads", torch.get_num_threads())
        assert api.llama_n_ubatch(context) == own.get("ubatch", 512)
        kind = own.get("flash_attention")
        assert tuned.attention == "llama.cpp's own" + (f", flash attention {kind}" if kind else "")
        tuned.close()
    states = {kind: load(folder, flash_attention=kind).logits(ids) for kind in ("auto", "enabled", "disabled")}
    assert not torch.equal(states["enabled"], states["disabled"]), "another order of the same sums"


def test_a_cache_in_fewer_bits_needs_flash_attention(wider: tuple[Path, Path]) -> None:
    with pytest.raises(UnsupportedError, match="makes no context"):
        load(wider[1], "int8", flash_attention="disabled").logits(torch.tensor([[1, 2]]))
