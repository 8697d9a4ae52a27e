"""Tokens of requests from the cache are those that the tokenizer makes, and only of the same texts and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from harness.storage.cache import Cache
from harness.tasks.lm import encode
from harness.text import kept_requests
from harness.text.kept_requests import keeping

pytestmark = pytest.mark.heavy

TEXTS = ["The ship was three days late.", "Und noch ein Satz, mit ü und 港.", "", *map(str, range(50))]


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """What the tokenizer was asked. All texts are long enough to be kept."""
    monkeypatch.setattr(kept_requests, "MIN_TEXT_BYTES", 1)
    return []


@pytest.fixture
def encoded(cache: Cache, asked: list[Sequence[str]]):
    def counted(tokenizer: Any, texts: Sequence[str], special: bool) -> Sequence[Sequence[int]]:
        asked.append(texts)
        return [[len(text), int(special)] for text in texts] if tokenizer is None else encode(tokenizer, texts, special)

    return keeping(cache, counted)


def test_kept_tokens_equal_those_that_are_made(
    encoded, tokenizer: Any, asked: list[Sequence[str]], cache: Cache
) -> None:
    for special in (True, False):
        expected = encode(tokenizer, TEXTS, special)
        assert any(len(row) > 5 for row in expected)
        assert encoded(tokenizer, TEXTS, special) == expected
        assert encoded(tokenizer, TEXTS, special) == expected
    assert len(asked) == 2
    assert list(cache.faults(read_data=True)) == []


def test_another_text_order_or_tokenizer_is_asked(encoded, tokenizer: Any, asked: list[Sequence[str]]) -> None:
    for texts in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a b"]):
        assert encoded(tokenizer, texts, False) == encode(tokenizer, texts, False)
    before = len(asked)
    tokenizer.add_tokens(["ab"])
    assert encoded(tokenizer, ["ab"], False) == encode(tokenizer, ["ab"], False)
    assert (before, len(asked)) == (5, 6)


def test_a_tokenizer_that_splits_special_tokens_is_another(encoded, tokenizer: Any) -> None:
    texts = [f"a {tokenizer.eos_token} b"]
    whole = encoded(tokenizer, texts, False)
    tokenizer.split_special_tokens = True
    split = encoded(tokenizer, texts, False)
    assert split == encode(tokenizer, texts, False) != whole


def test_a_damaged_entry_is_made_again(encoded, tokenizer: Any, asked: list[Sequence[str]], cache: Cache) -> None:
    expected = encoded(tokenizer, ["a", "b"], True)
    [entry] = (cache.root / "requests").glob("*")
    whole = entry.read_text()
    entry.write_text(whole.replace('"lengths": [', '"lengths": [1, '))
    assert [fault.path for fault in cache.faults(read_data=False)] == [entry]
    assert encoded(tokenizer, ["a", "b"], True) == expected
    assert len(asked) == 2
    assert entry.read_text() == whole


def test_few_texts_and_tokenizers_with_code_of_their_own_are_asked_each_time(
    encoded, asked: list[Sequence[str]], cache: Cache, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert encoded(None, ["a\ud800b"], True) == encoded(None, ["a\ud800b"], True) == [[3, 1]]
    monkeypatch.setattr(kept_requests, "MIN_TEXT_BYTES", 10)
    assert encoded(tokenizer, ["abcd", "efgh"], True) == encoded(tokenizer, ["abcd", "efgh"], True)
    assert len(asked) == 4
    assert not (cache.root / "requests").exists()
