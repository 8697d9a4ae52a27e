"""The GPTQ protocol, held against a plain rendering of its published code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from harness.core.workload import PerplexityWorkload, TextRef
from harness.errors import SourceError, UnsupportedError
from harness.recipe import Text
from harness.text.sources import TEXTS, resolve, rows
from harness.text.windows import cut

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def tokenizer(tiny: Path):
    return AutoTokenizer.from_pretrained(tiny)


def workload(path: Path, context: int = 32, windows: int | None = None) -> PerplexityWorkload:
    return PerplexityWorkload(resolve(Text(file=str(path)), path.parent), "gptq", context, windows)


def test_rows_are_those_the_hub_serves(tmp_path: Path) -> None:
    path = tmp_path / "wiki.raw"
    path.write_text(" \n = Title = \n \n First line . \n")
    assert rows(TextRef("w", str(path))) == ["", " = Title = \n", "", " First line . \n"]


def test_only_a_newline_ends_a_row(tmp_path: Path) -> None:
    """Other separators that str.splitlines knows are part of the text, as they are on the hub."""
    path = tmp_path / "t.txt"
    path.write_text("one\u2028still one\x0cand still\ntwo\n", encoding="utf-8")
    assert rows(TextRef("t", str(path))) == ["one\u2028still one\x0cand still\n", "two\n"]


def test_rows_of_json_lines_are_one_field_each(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"body": "a", "n": 1}\n{"body": "b"}\n')
    assert rows(TextRef("t", str(path), field="body")) == ["a", "b"]
    with pytest.raises(SourceError, match=r"t\.jsonl:1: no JSON object with a field 'text'"):
        rows(TextRef("t", str(path)))


def test_windows_follow_one_another_with_one_bos_at_the_start(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("The river was wide.\n\nThe bridge was narrow.\n" * 20)
    expected = tokenizer("\n\n".join(["The river was wide.\n", "", "The bridge was narrow.\n"] * 20)).input_ids
    cut_windows = cut(workload(path), tokenizer)
    flat = [token for window in cut_windows.tokens for token in window]
    assert flat == expected[: len(flat)]
    assert len(expected) - len(flat) < 32
    assert flat.count(tokenizer.bos_token_id) == 1
    assert flat[0] == tokenizer.bos_token_id
    assert cut_windows.protocol["bos"] == "once"
    assert cut_windows.protocol["tokens_scored"] == len(cut_windows.tokens) * 31


def test_only_the_first_windows_are_kept_where_the_recipe_says_so(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("The river was wide. " * 200)
    everything, first = cut(workload(path), tokenizer), cut(workload(path, windows=2), tokenizer)
    assert list(first.tokens) == list(everything.tokens)[:2]
    assert first.protocol["tokens_sha256"] != everything.protocol["tokens_sha256"]
    assert first.protocol["text_sha256"] == everything.protocol["text_sha256"]


def test_a_text_too_short_for_one_window_is_told(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("Short.")
    with pytest.raises(UnsupportedError, match="fewer than one window of 32"):
        cut(workload(path), tokenizer)


def test_wikitext_is_joined_as_the_published_protocol_joins_it(tokenizer, shared: Callable[[str], Path]) -> None:
    """GPTQ's datautils.py: ``"\\n\\n".join(testdata["text"])`` of the hub's rows, where a blank line is ''."""
    path = shared("data/wikitext2/wiki.test.raw")
    hub_rows = [line if line.strip() else "" for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    joined = "\n\n".join(row + "\n" if row else "" for row in hub_rows)
    expected = tokenizer(joined).input_ids
    assert list(cut(workload(path, 512, 1), tokenizer).tokens[0]) == expected[:512]
    assert joined.startswith("\n\n = Robert Boulter = \n\n\n")


@pytest.mark.parametrize("name", TEXTS)
def test_the_projects_own_texts(name: str) -> None:
    ref = resolve(Text(name=name), Path())
    text = Path(str(ref.path)).read_text(encoding="ascii")
    assert len(text) >= 40_000 or name == "demo_prompts"
    paragraphs = [row for row in rows(ref) if row]
    assert len(paragraphs) == len(set(paragraphs))


def test_the_evaluation_text_is_not_in_the_calibration_text() -> None:
    def grams(name: str) -> set[tuple[str, ...]]:
        words = " ".join(rows(resolve(Text(name=name), Path()))).lower().split()
        return set(zip(*(words[i:] for i in range(8)), strict=False))

    assert not grams("demo") & grams("demo_calibration")
