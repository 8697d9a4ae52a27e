"""Windows from the cache are those that are cut, and only of the same text, tokenizer and protocol."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers.normalizers import Lowercase
from transformers import AutoTokenizer

from harness.core.workload import PerplexityWorkload
from harness.recipe import Text
from harness.storage.cache import Cache
from harness.text import kept, kept_windows
from harness.text.kept_windows import kept_or_cut
from harness.text.protocols import PRESETS
from harness.text.sources import DATA, resolve
from harness.text.windows import cut

pytestmark = pytest.mark.heavy

PROSE = (DATA / "demo.txt").read_text(encoding="utf-8")[:12_000]


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text that is just long enough to be kept."""
    path = tmp_path / "prose.txt"
    path.write_text(PROSE, encoding="utf-8")
    monkeypatch.setattr(kept_windows, "MIN_TEXT_BYTES", path.stat().st_size)
    return path


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[PerplexityWorkload]:
    """The workloads that are cut and not read."""
    made: list[PerplexityWorkload] = []

    def counted(workload: PerplexityWorkload, tokenizer: Any) -> Any:
        made.append(workload)
        return cut(workload, tokenizer)

    monkeypatch.setattr(kept_windows, "cut", counted)
    return made


def workload(path: Path, protocol: str = "gptq") -> PerplexityWorkload:
    stride = 48 if PRESETS[protocol].strided else None
    return PerplexityWorkload(resolve(Text(file=str(path)), path.parent), protocol, 64, None, stride)


def entries(cache: Cache) -> list[Path]:
    return sorted((cache.root / "windows").glob("*"))


@pytest.mark.parametrize("protocol", PRESETS)
def test_kept_windows_equal_those_that_are_cut(protocol: str, text: Path, cache: Cache, tokenizer: Any) -> None:
    expected = cut(workload(text, protocol), tokenizer)
    first, again = (kept_or_cut(cache, workload(text, protocol), tokenizer) for _ in range(2))
    assert len(expected.tokens) > 10
    assert first == expected
    assert again == expected
    assert json.dumps(vars(again)) == json.dumps(vars(expected))  # types and order too
    assert len(entries(cache)) == 1
    assert list(cache.faults(read_data=True)) == []


def test_a_text_is_cut_once(text: Path, cache: Cache, cuts: list[Any], tiny: Path) -> None:
    """Another load of the tokenizer, and the same text elsewhere."""
    kept_or_cut(cache, workload(text), AutoTokenizer.from_pretrained(tiny))
    moved = text.parent / "elsewhere" / text.name
    moved.parent.mkdir()
    text.rename(moved)
    kept_or_cut(cache, workload(moved), AutoTokenizer.from_pretrained(tiny))
    assert len(cuts) == 1


def test_another_text_tokenizer_or_protocol_is_cut(text: Path, cache: Cache, cuts: list[Any], tokenizer: Any) -> None:
    def windows(asked: PerplexityWorkload) -> Any:
        found = kept_or_cut(cache, asked, tokenizer)
        assert found == cut(asked, tokenizer)
        return found

    asked = workload(text)
    kept = [windows(asked), windows(replace(asked, context=32)), windows(replace(asked, windows=3))]
    kept += [windows(replace(asked, bos="never")), windows(replace(asked, text=replace(asked.text, id="renamed")))]
    text.write_text(PROSE.replace("the ", "THE ", 1), encoding="utf-8")  # of the same size, after it was planned
    kept.append(windows(asked))
    tokenizer.add_tokens(["THE"])
    kept.append(windows(asked))
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    kept.append(windows(asked))
    assert len(cuts) == len(kept) == len(entries(cache))
    assert all(one != other for index, one in enumerate(kept) for other in kept[:index])


@pytest.mark.parametrize("damage", ["cut", "edited", "swapped"])
def test_a_damaged_entry_is_made_again(damage: str, text: Path, cache: Cache, cuts: list[Any], tokenizer: Any) -> None:
    expected = kept_or_cut(cache, workload(text), tokenizer)
    [entry] = entries(cache)
    whole = entry.read_text()
    if damage == "cut":
        entry.write_text(whole[: len(whole) // 2])
    elif damage == "edited":
        entry.write_text(json.dumps({**json.loads(whole), "firsts": [2] * len(expected.firsts)}))
    else:  # another entry, whole, under this name
        kept_or_cut(cache, workload(text, "lm-eval"), tokenizer)
        [other] = set(entries(cache)) - {entry}
        other.replace(entry)
    before = len(cuts)
    assert kept_or_cut(cache, workload(text), tokenizer) == expected
    assert len(cuts) == before + 1
    assert entry.read_text() == whole


def test_the_oldest_entries_make_room(
    text: Path, cache: Cache, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, protocol in enumerate(PRESETS):
        kept_or_cut(cache, workload(text, protocol), tokenizer)
        for entry in entries(cache):
            os.utime(entry, (entry.stat().st_mtime - 10, entry.stat().st_mtime - 10))
        assert len(entries(cache)) == index + 1
    young = max(entries(cache), key=lambda path: path.stat().st_mtime)
    asked = replace(workload(text), context=128)
    monkeypatch.setattr(kept, "MAX_FOLDER_BYTES", young.stat().st_size * 2)
    kept_or_cut(cache, asked, tokenizer)
    assert young in entries(cache)
    assert sum(path.stat().st_size for path in entries(cache)) <= young.stat().st_size * 2


def test_what_cannot_be_known_or_does_not_pay_is_not_kept(text: Path, cache: Cache, tokenizer: Any) -> None:
    class Own(type(tokenizer)):  # type: ignore[misc] # code that may do anything to a text
        pass

    own = Own(tokenizer_object=tokenizer.backend_tokenizer, bos_token=tokenizer.bos_token)
    assert kept_or_cut(cache, workload(text), own) == cut(workload(text), own)
    short = text.parent / "short.txt"
    short.write_text(PROSE[:-100], encoding="utf-8")
    assert kept_or_cut(cache, workload(short), tokenizer) == cut(workload(short), tokenizer)
    assert entries(cache) == []


def test_a_cache_that_cannot_be_written_costs_nothing(text: Path, tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "file").write_text("")
    assert kept_or_cut(Cache(tmp_path / "file"), workload(text), tokenizer) == cut(workload(text), tokenizer)
