"""Tables and lines for a terminal: at its width, and in colour if it supports it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def plain(text: str) -> str:
    """Without line breaks and other control characters, which a terminal would interpret."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def written(parts: Iterable[Text | Table], width: int, colour: bool) -> str:
    """The parts one below the other, with ANSI colours on request; no line ends in spaces."""
    from rich.console import Console

    file = StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def show(render: Callable[[int | None, bool], str]) -> None:
    """Prints ``render(width, colour)``; for a file or pipe, the width is None and there is no colour."""
    if sys.stdout.isatty():
        sys.stdout.write(render(shutil.get_terminal_size().columns, True))
    else:
        sys.stdout.write(render(None, False))
