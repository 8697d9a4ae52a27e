"""Two tasks at once: both answers or one error, as if one had followed the other, whatever happens to the fork."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from harness.core.record import RunRecord
from harness.report import write_report
from harness.report.page import Page
from harness.report.side_by_side import side_by_side


@pytest.fixture(autouse=True)
def _alone_on_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.report.side_by_side.cores", lambda: 2)
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # tests that run beside others have a thread of pytest's


def test_without_a_further_process_both_are_called_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    assert side_by_side(os.getpid, os.getpid) == (os.getpid(), os.getpid())


def in_fork(do: Callable[[], object]) -> Callable[[], str]:
    """A task that does something first if it is in another process than the test."""
    own = os.getpid()

    def task() -> str:
        if os.getpid() != own:
            do()
        return "answer"

    return task


def test_the_second_answer_is_that_of_a_fork_however_large() -> None:
    large = os.urandom(2**20)
    first, (second, found) = side_by_side(os.getpid, lambda: (os.getpid(), large))
    assert first == os.getpid() != second
    assert found == large


@pytest.mark.parametrize("lacking", ["harness.report.side_by_side.cores", "threading.active_count"])
def test_one_core_or_another_thread_makes_no_fork(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lacking, lambda: 1 if lacking.endswith("cores") else 2)
    assert side_by_side(os.getpid, os.getpid) == (os.getpid(), os.getpid())


@pytest.mark.parametrize(
    "end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(0), lambda: 1 / 0, lambda: sys.exit(3)]
)
def test_a_fork_that_ends_without_an_answer_is_done_without(end: Callable[[], object]) -> None:
    assert side_by_side(lambda: 1, in_fork(end)) == (1, "answer")


def test_what_cannot_be_pickled_is_made_here() -> None:
    _, found = side_by_side(lambda: 1, threading.Lock)
    assert not found.locked()


def test_an_error_of_the_second_is_raised_here(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda: 1, lambda: 1 / 0)
    assert capfd.readouterr() == ("", "")


def test_an_error_of_the_first_ends_the_fork(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def begin() -> None:
        begun.with_suffix(".part").write_text(str(os.getpid()))
        begun.with_suffix(".part").rename(begun)
        time.sleep(60)

    def fail() -> None:
        while not begun.exists():
            time.sleep(0.001)
        raise ValueError("the first")

    with pytest.raises(ValueError, match="the first"):
        side_by_side(fail, in_fork(begin))
    assert not Path(f"/proc/{begun.read_text()}").exists()


def test_a_long_report_is_the_same_from_two_processes(
    records: Sequence[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = ("csv", "html", "parquet", "md")
    alone = write_report(records, tmp_path / "alone", formats)
    monkeypatch.setattr("harness.report.page.MANY_ROWS", 1)
    both = write_report(records, tmp_path / "both", formats)
    assert [path.name for path in both] == [path.name for path in alone]
    assert [path.read_bytes() for path in both] == [path.read_bytes() for path in alone]

    def number(page: Page) -> list[tuple[str, bytes]]:
        return [("process", str(os.getpid()).encode())]

    monkeypatch.setattr("harness.report.write.FORMATS", dict.fromkeys(("html", "md", "csv"), number))
    made = {name: write_report(records, tmp_path / name, ("html", name))[-1].read_text() for name in ("md", "csv")}
    assert str(os.getpid()) not in made.values()
    assert write_report(records, tmp_path / "one", ("md", "csv"))[-1].read_text() == str(os.getpid())
