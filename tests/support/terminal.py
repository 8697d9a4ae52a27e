"""A command at a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Sequence

CONTROL, AGAIN_S = ("\x03", "\x04"), 5.0
"""Ctrl-C and Ctrl-D, and after how long without an effect somebody would press them again."""


class Terminal:
    """A process of this interpreter whose input and output are a terminal. ``text`` is what it has printed."""

    def __init__(self, arguments: Sequence[object], program: Sequence[str] = ("-m", "harness")) -> None:
        self._master, theirs = pty.openpty()

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        words = [sys.executable, *program, *map(str, arguments)]
        self._process = subprocess.Popen(
            words,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=take_terminal,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(theirs)
        self.text = ""
        self._typed = ""

    def wait_for(self, text: str) -> None:
        """Waits until the text is printed, and drops it with all before it."""
        while text not in self.text:
            self._read()
        self.text = self.text.rpartition(text)[2]

    def answer(self, question: str, answer: str) -> None:
        """Waits for the question, and types."""
        self.wait_for(question)
        self._typed = answer
        os.write(self._master, answer.encode())

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """The exit code; the rest of what is printed is in ``text``."""
        try:
            while True:
                self._read()
        except OSError:  # the terminal is closed
            os.close(self._master)
        return self._process.wait()

    def _read(self) -> None:
        while self._typed in CONTROL and not select.select([self._master], [], [], AGAIN_S)[0]:
            os.write(self._master, self._typed.encode())  # a signal right before Python reads does not end its reading
        read = os.read(self._master, 4096)
        if not read:
            raise OSError("the terminal is closed")
        self.text += read.decode(errors="replace")
