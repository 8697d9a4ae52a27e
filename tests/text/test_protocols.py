"""What each perplexity protocol scores, token by token, and what it refuses.

Held against the real tools in tests/metrics/test_perplexity_conformance.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from harness.core.metric import Windows
from harness.core.workload import PerplexityWorkload, TextRef
from harness.errors import UnsupportedError
from harness.text.protocols import PRESETS
from harness.text.protocols.detokenizer import detokenize
from harness.text.protocols.lm_eval import _rolling, documents
from harness.text.windows import cut

pytestmark = pytest.mark.heavy

PAGES = " \n = One = \n \n = = Part = = \n first , second . \n \n = Two = \n \n third . \n"


class Letters:
    """A tokenizer whose tokens are the text's characters, BOS (1) before them where that is its habit."""

    eos_token_id = 2

    def __init__(self, bos: int | None = 1, habit: bool = False) -> None:
        self.bos_token_id = bos
        self._start = [1] if habit else []

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": (self._start if add_special_tokens else []) + [ord(letter) for letter in text]}


def windows(path: Path, protocol: str, context: int, tokenizer: object, **settings: Any) -> Windows:
    settings = {"windows": None, **settings}
    return cut(PerplexityWorkload(TextRef("t", str(path)), protocol, context, **settings), tokenizer)


def scored(cut_windows: Windows) -> list[int]:
    return [token for row, first in zip(cut_windows.tokens, cut_windows.firsts, strict=True) for token in row[first:]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A line of 100 different characters."""
    path = tmp_path / "t.txt"
    path.write_text("".join(chr(0x4E00 + index) for index in range(100)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def wikitext(shared: Callable[[str], Path]) -> Path:
    return shared("data/wikitext2/wiki.test.raw")


@given(st.integers(4, 60), st.data())
def test_sliding_scores_every_token_once_after_enough_others(context: int, data: st.DataObject) -> None:
    import tempfile

    stride = data.draw(st.integers(1, context - 1))
    length = data.draw(st.integers(context, 100))
    letters = [0x4E00 + index for index in range(length)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.txt"
        path.write_text("".join(map(chr, letters)), encoding="utf-8")
        found = windows(path, "sliding", context, Letters(), stride=stride)
    assert scored(found) == letters[1:]
    assert all(len(row) <= context for row in found.tokens)
    assert all(first >= context - stride for first in found.firsts[1:])
    assert all(after[0] == before[0] + stride for before, after in pairwise(found.tokens))
    assert found.protocol["tokens_scored"] == length - 1


def test_sliding_with_a_stride_of_the_context_leaves_first_tokens_out(text: Path) -> None:
    found = windows(text, "sliding", 40, Letters(), stride=40)
    assert list(found.firsts) == [1, 1, 1]
    assert [len(row) for row in found.tokens] == [40, 40, 20]
    assert [len(row) for row in windows(text, "sliding", 33, Letters(), stride=33).tokens] == [33, 33, 33]  # 99 + 1


def test_llama_cpp_scores_behind_the_middle_with_bos_in_the_first_place(text: Path) -> None:
    found = windows(text, "llama.cpp", 10, Letters(habit=True))
    whole = [1, *(0x4E00 + index for index in range(100))]
    assert len(found.tokens) == 10
    for index, row in enumerate(found.tokens):
        assert list(row) == [1, *whole[index * 10 + 1 : index * 10 + 10]]
    assert set(found.firsts) == {6}  # 10 // 2 + 1: the logits at 5 … 8 score the tokens at 6 … 9
    assert found.protocol["bos"] == "every window"


def test_llama_cpp_reads_the_file_as_it_is_but_for_one_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b" \n one\r\n \n\n")
    found = windows(path, "llama.cpp", 2, Letters())
    assert [token for row in found.tokens for token in row] == [ord(letter) for letter in " \n one\r\n \n"]
    assert found.protocol["bos"] == "none"


def test_llama_cpp_takes_special_tokens_in_the_text_for_text(tiny: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    path = tmp_path / "t.txt"
    path.write_text("one </s> two </s> three")
    flat = [token for row in windows(path, "llama.cpp", 4, tokenizer).tokens for token in row]
    assert tokenizer.eos_token_id not in flat
    assert tokenizer.eos_token_id in tokenizer("one </s> two").input_ids


def test_lm_eval_puts_the_prefix_before_each_document_and_rolls_on(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ("abcdefg", "xy")))
    found = windows(path, "lm-eval", 3, Letters())
    shown = [(f"{'^' if row[0] == 1 else chr(row[0])}{''.join(map(chr, row[1:]))}") for row in found.tokens]
    assert shown == ["^abc", "cdef", "defg", "^xy"]  # the last window is filled up with what stands before
    assert list(found.firsts) == [1, 1, 3, 1]
    assert "".join(map(chr, scored(found))) == "abcdefgxy"
    assert list(found.documents) == ["0", "0", "0", "1"]
    assert found.amounts == {"word": {"0": 1, "1": 1}, "byte": {"0": 7, "1": 2}}


def test_lm_eval_scores_the_bos_that_the_tokenizer_adds_behind_the_prefix(tmp_path: Path) -> None:
    """So does lm-eval's transformers backend where its ``add_bos_token`` is left alone."""
    path = tmp_path / "t.txt"
    path.write_text("abc")
    habit = Letters(habit=True)
    assert list(windows(path, "lm-eval", 8, habit).tokens[0])[:3] == [1, 1, ord("a")]
    assert list(windows(path, "lm-eval", 8, habit, bos="never").tokens[0])[:2] == [1, ord("a")]
    assert list(windows(path, "lm-eval", 8, Letters(bos=None)).tokens[0])[:2] == [2, ord("a")]


@pytest.fixture(scope="module")
def lm_eval_utils() -> Any:
    return pytest.importorskip("lm_eval.utils")


@given(context=st.integers(1, 9), ids=st.lists(st.integers(10, 99), min_size=1, max_size=40))
def test_rolling_windows_are_lm_evals(lm_eval_utils: Any, context: int, ids: list[int]) -> None:
    utils = lm_eval_utils
    theirs = [
        (before + after, len(before))
        for before, after in map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, 1, context, 1))
    ]
    assert list(_rolling(ids, 1, context)) == theirs


def test_wikitext_is_cut_into_the_hubs_pages(wikitext: Path, tmp_path: Path) -> None:
    """From the file as from the rows that the hub serves. The expected pages are those of the hub's own script."""
    content = wikitext.read_text(encoding="utf-8")
    pages: list[str] = []
    lines: list[str] = []
    for line in content.split("\n"):
        closed = line.replace("= = =", "===").replace("= =", "==").strip()
        if closed.startswith("= ") and closed.endswith(" ="):
            pages += ["\n".join(lines)]
            lines = []
        lines.append(line)
    expected = [page for page in [*pages, "\n".join(lines)] if page.strip()]
    assert len(expected) == 62
    assert documents(TextRef("w", str(wikitext))) == (expected, True)
    rows = tmp_path / "rows.jsonl"
    hub = [f"{line}\n" if line.strip() else "" for line in content.split("\n")[:-1]]
    rows.write_text("".join(json.dumps({"text": row}) + "\n" for row in hub), encoding="utf-8")
    assert documents(TextRef("w", str(rows))) == (expected, True)
    whole_pages = tmp_path / "pages.jsonl"
    whole_pages.write_text("".join(json.dumps({"text": page}) + "\n" for page in expected), encoding="utf-8")
    assert documents(TextRef("w", str(whole_pages))) == (expected, True)


def test_a_text_without_titles_keeps_its_rows_and_its_punctuation(tmp_path: Path) -> None:
    plain, rows = tmp_path / "t.txt", tmp_path / "t.jsonl"
    plain.write_text("One . \n\nTwo . \n")
    rows.write_text('{"text": "One . "}\n{"text": " "}\n{"text": "Two . "}\n')
    assert documents(TextRef("t", str(plain))) == (["One . \n\nTwo . \n"], False)
    assert documents(TextRef("t", str(rows))) == (["One . ", "Two . "], False)
    assert "".join(map(chr, scored(windows(plain, "lm-eval", 64, Letters())))) == "One . \n\nTwo . \n"


def test_titles_part_ordinary_prose_too_but_its_punctuation_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("= One =\nFirst, 'second'.\n= Two =\nThird.\n")
    pages = ["= One =\nFirst, 'second'.", "= Two =\nThird.\n"]
    assert documents(TextRef("t", str(path))) == (pages, False)


def test_punctuation_is_put_back_as_lm_eval_does(wikitext: Path) -> None:
    theirs = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext").wikitext_detokenizer
    pages = documents(TextRef("w", str(wikitext)))[0]
    odd = " \n a 's ( b ) [ c ] { d } \" e \" ' f ' /' 3/ = = = = N ° 1 @,@ 2 @-@ 3 @.@ 4 ; ! ? : dogs ' \n x N y"
    for page in (*pages, odd):
        assert detokenize(page) == theirs({"page": page})


def test_words_and_bytes_are_those_of_the_published_page(tmp_path: Path) -> None:
    path = tmp_path / "t.raw"
    path.write_text(PAGES)
    found = windows(path, "lm-eval", 64, Letters())
    pages = re.split(r"\n(?= = \w)", PAGES)[1:]
    assert list(found.amounts["byte"].values()) == [len(page) for page in pages]
    assert list(found.amounts["word"].values()) == [len(re.split(r"\s+", page)) for page in pages]
    assert found.protocol["detokenizer"] == "wikitext"
    assert "first, second." in "".join(map(chr, scored(found)))


def test_only_whole_documents_count_where_windows_are_few(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ("abcd", "efgh", "ij")))
    found = windows(path, "lm-eval", 2, Letters(), windows=3)
    assert list(found.documents) == ["0", "0"]
    assert found.amounts["word"] == {"0": 1}
    assert found.protocol["documents"] == 1
    with pytest.raises(UnsupportedError, match="takes 2 windows, and 'windows' allows 1"):
        windows(path, "lm-eval", 2, Letters(), windows=1)


@pytest.mark.parametrize("protocol", ["gptq", "sliding"])
def test_bos_stands_once_at_the_start_where_it_is_wanted(text: Path, protocol: str) -> None:
    stride = {"stride": 5} if protocol == "sliding" else {}

    def beginning(tokenizer: Letters, bos: str) -> tuple[int, object]:
        found = windows(text, protocol, 10, tokenizer, bos=bos, **stride)
        assert sum(row.count(1) for row in map(list, found.tokens)) == (found.tokens[0][0] == 1)
        return found.tokens[0][0], found.protocol["bos"]

    for bos in ("auto", "always"):
        assert beginning(Letters(habit=True), bos) == (1, "once")
    assert beginning(Letters(habit=False), "always") == (1, "once")
    assert beginning(Letters(habit=False), "auto") == (0x4E00, "none")
    assert beginning(Letters(habit=True), "never") == (0x4E00, "none")


@pytest.mark.parametrize("protocol", PRESETS)
def test_bos_is_needed_where_the_recipe_asks_for_it(text: Path, protocol: str) -> None:
    stride = {"stride": 5} if protocol == "sliding" else {}
    with pytest.raises(UnsupportedError, match="the model's tokenizer has none"):
        windows(text, protocol, 10, Letters(bos=None), bos="always", **stride)


def test_lm_eval_needs_a_token_to_begin_with(text: Path) -> None:
    bare = Letters(bos=None)
    bare.eos_token_id = None  # type: ignore[assignment]
    with pytest.raises(UnsupportedError, match="the model's tokenizer has neither"):
        windows(text, "lm-eval", 10, bare)


@pytest.mark.parametrize(
    ("protocol", "context", "message"),
    [
        ("gptq", 101, "has 100 tokens, fewer than one window of 101"),
        ("sliding", 101, "has 100 tokens, fewer than one window of 101"),
        ("llama.cpp", 51, "has 100 tokens, fewer than the 2 windows that llama.cpp asks for, each of 51"),
    ],
)
def test_a_text_too_short_is_told(text: Path, protocol: str, context: int, message: str) -> None:
    stride = {"stride": 5} if protocol == "sliding" else {}
    with pytest.raises(UnsupportedError, match=message):
        windows(text, protocol, context, Letters(), **stride)


def test_an_empty_text_has_no_document(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(" \n")
    with pytest.raises(UnsupportedError, match="holds no document"):
        windows(path, "lm-eval", 8, Letters())


@pytest.mark.parametrize("protocol", PRESETS)
def test_a_protocol_says_how_many_tokens_of_a_window_it_scores(text: Path, protocol: str) -> None:
    stride = 3 if PRESETS[protocol].strided else None
    found = windows(text, protocol, 10, Letters(), stride=stride)
    second = len(found.tokens[1]) - found.firsts[1]
    assert PRESETS[protocol].scored(10, stride) == second
