"""What messages say of an error that a system or a library raised."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

import harness
from harness.errors import first_line_of, reason_of

FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, FULL, "/home/me/results"), FULL),
        (OSError("the server did not answer"), "the server did not answer"),
        (ValueError("not a number"), "not a number"),
    ],
)
def test_the_reason_is_what_the_system_says_without_the_path(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_no_message_reads_the_system_s_words_by_itself() -> None:
    """``OSError.strerror`` is None of an error that a library made, and "None" says nothing."""
    package = Path(harness.__file__).parent
    readers = (path for path in package.rglob("*.py") if re.search(r"(?<!os)\.strerror\b", path.read_text("utf-8")))
    assert [path.name for path in readers] == ["errors.py"]


@pytest.mark.parametrize(
    ("message", "line"), [("no symbol\nat 0x7f", "no symbol"), ("\n  wrapped\n", "wrapped"), ("", "RuntimeError")]
)
def test_of_a_long_message_the_first_line_counts_and_of_none_the_type(message: str, line: str) -> None:
    assert first_line_of(RuntimeError(message)) == line
