"""What must not be cut in two ends before an interrupt takes effect."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from harness.execution.interrupt import uninterrupted


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGTERM, signal.SIGINT]])
def test_signals_wait_for_the_end_of_the_block(numbers: list[int]) -> None:
    done: list[str] = []

    def block() -> None:
        with uninterrupted():
            for number in numbers:
                os.kill(os.getpid(), number)
            done.append("all")
        done.append("more")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["all"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_signal_nothing_changes() -> None:
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_error_in_the_block_comes_through() -> None:
    with pytest.raises(ValueError, match="an error"), uninterrupted():
        raise ValueError("an error")


def test_another_thread_has_nothing_to_put_off() -> None:
    def block() -> None:
        with uninterrupted():
            done.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)

    done: list[bool] = []
    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert done == [True]
