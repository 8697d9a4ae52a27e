"""What the parent takes from a worker is bounded, whatever a library writes into it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.record import Failure, Outcome
from harness.errors import ResultsError
from harness.execution import output
from harness.execution.output import Log, Phases, Pipe, read_outcome
from harness.execution.worker import MAX_MESSAGE_CHARACTERS
from harness.storage import outcome_file
from harness.storage.json_codec import encode

BLOCKS = st.lists(st.binary(max_size=40), max_size=20)


@given(BLOCKS, st.integers(0, 30), st.integers(0, 30))
def test_a_log_keeps_its_beginning_and_its_end(blocks: list[bytes], head: int, tail: int) -> None:
    log = Log(head, tail)
    for block in blocks:
        log.add(block)
    whole = b"".join(blocks)
    left_out = len(whole) - head - tail
    if left_out <= 0:
        assert log.content() == whole
    else:
        assert log.content() == whole[:head] + b"\n[%d bytes left out]\n" % left_out + whole[len(whole) - tail :]


def test_a_log_never_holds_more_than_its_bounds() -> None:
    log = Log(100, 100)
    for _ in range(1000):
        log.add(b"x" * 7)
        assert len(log._head) + len(log._tail) <= 300


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20), max_size=9), st.randoms())
def test_phases_arrive_however_they_are_cut(names: list[str], random: object) -> None:
    heard: list[str] = []
    phases = Phases(heard.append)
    written = "".join(f"{name}\n" for name in names).encode()
    while written:
        size = random.randint(1, 5)  # type: ignore[attr-defined]
        phases.add(written[:size])
        written = written[size:]
    assert heard == names
    assert phases.current == (names[-1] if names else "start")


def test_garbage_in_the_pipe_of_events_is_bounded_and_printable() -> None:
    heard: list[str] = []
    phases = Phases(heard.append)
    for _ in range(100):
        phases.add(b"x" * (1 << 20))  # a line of 100 MB
        assert len(phases._line) <= 4 * output.MAX_PHASE_CHARACTERS
    phases.add(b"\n\xff\xfe\x1b[31m\n\n \r\n" + b"load\n" * (2 * output.MAX_PHASES))
    assert heard[0] == "x" * output.MAX_PHASE_CHARACTERS
    assert heard[1] == "\ufffd\ufffd\ufffd[31m"
    assert len(heard) == output.MAX_PHASES


def test_what_showing_a_phase_raises_is_kept_for_the_waiting_thread() -> None:
    heard: list[str] = []

    def show(name: str) -> None:
        heard.append(name)
        raise BrokenPipeError

    phases = Phases(show)
    phases.add(b"load\nquantize\n")
    assert heard == ["load"]
    assert phases.current == "quantize"
    assert isinstance(phases.error, BrokenPipeError)


def test_a_pipe_that_somebody_keeps_open_does_not_hang() -> None:
    heard: list[bytes] = []
    pipe = Pipe(heard.append)
    kept = os.dup(pipe.write)
    os.write(kept, b"printed")
    pipe.stop()
    assert b"".join(heard) == b"printed"
    with pytest.raises(BrokenPipeError):
        os.write(kept, b"later")
    os.close(kept)


FAILED = Outcome("failed", Failure("load", "RuntimeError", "no"))


def test_an_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    assert read_outcome(path) is None
    path.write_text(encode(FAILED))
    assert read_outcome(path) == FAILED


def test_a_failure_s_texts_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    path.write_text(encode(Outcome("failed", Failure("load", "RuntimeError", "x" * 10**6))))
    outcome = read_outcome(path)
    assert outcome is not None
    assert outcome.failure is not None
    assert len(outcome.failure.message) < MAX_MESSAGE_CHARACTERS + 50


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"status": "great"}',
        b'{"status": "ok", "status": "ok"}',
        b'{"status": "failed"}',
        encode(Outcome("ok", FAILED.failure)).encode(),
        b'{"status": "failed", "failure": {"phase": "load", "type": "E", "message": "\\ud800"}}',
        b'{"status": "ok", "measurements": [{"metric": "m", "version": 1, "unit": "s", "direction": "lower", '
        b'"evidence": "exact", "values": [NaN]}]}',
    ],
)
def test_what_is_no_outcome_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "outcome.json"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=r"outcome\.json"):
        read_outcome(path)


@pytest.mark.parametrize("replace", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused_and_does_not_hang(tmp_path: Path, replace: object) -> None:
    replace(tmp_path / "outcome.json")  # type: ignore[operator]
    with pytest.raises(ResultsError, match=r"outcome\.json"):
        read_outcome(tmp_path / "outcome.json")


def test_an_outcome_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_file, "MAX_OUTCOME_BYTES", 100)
    (tmp_path / "outcome.json").write_text(encode(FAILED) + " " * 100)
    with pytest.raises(ResultsError, match="larger than 100 bytes"):
        read_outcome(tmp_path / "outcome.json")
