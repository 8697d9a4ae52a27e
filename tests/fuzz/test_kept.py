"""Every input in a fuzzer's corpus, and every one that once broke something, is read or refused under the limits."""

from __future__ import annotations

from pathlib import Path

import fuzzing
import pytest


@pytest.mark.parametrize("name", fuzzing.targets())
def test_what_once_broke_something_is_read_or_refused(name: str) -> None:
    read, kept = fuzzing.target(name).read, fuzzing.kept(name)
    assert kept, f"tests/fuzz/corpus/{name} holds no input to start from"
    for path in kept:
        try:
            fuzzing.check(read, path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.relative_to(fuzzing.HERE)}: {error!r}") from error


@pytest.mark.parametrize("name", fuzzing.targets())
def test_the_corpus_holds_inputs_that_are_accepted(name: str) -> None:
    read, corpus = fuzzing.target(name).read, Path(fuzzing.HERE, "corpus", name)
    assert any(fuzzing.check(read, path.read_bytes()) for path in corpus.iterdir())


def test_the_frame_finds_what_must_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, a message that does not fit a terminal, a loop and a large allocation are each found."""
    monkeypatch.setattr(fuzzing, "LIMIT_CPU_S", 0.1)
    monkeypatch.setattr(fuzzing, "LIMIT_BYTES", 50_000_000)
    from harness.errors import SourceError

    def read(content: bytes, folder: Path) -> object:
        if content == b"loop":
            while True:
                pass
        if content == b"large":
            return len(b"x" * 300_000_000)
        raise {b"escape": SourceError("\x1b[31m"), b"long": SourceError("x" * 9999)}.get(content, KeyError("name"))

    for content in (b"loop", b"large", b"escape", b"long"):
        with pytest.raises(fuzzing.Broken):
            fuzzing.check(read, content)
    with pytest.raises(KeyError):
        fuzzing.check(read, b"other")
