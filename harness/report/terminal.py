"""Tables and lines for a terminal: at its width, and in colour if it supports it.

All text passes through ``harness.report.escape``: neither markup of rich nor a terminal's control characters in it have
an effect.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable
from io import StringIO
from typing import TYPE_CHECKING

from harness.report import escape

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def line(words: str, style: str = "") -> Text:
    """One line, or one cell."""
    from rich.text import Text

    return Text(escape.terminal(words), style=style)


def add_row(table: Table, *cells: str | Text) -> None:
    """Adds a row of cells; those that have no style of their own are given as strings."""
    table.add_row(*(line(cell) if isinstance(cell, str) else cell for cell in cells))


def written(parts: Iterable[Text | Table | str], width: int | None = None, colour: bool = False) -> str:
    """The parts one below the other, with ANSI colours on request; no line ends in spaces.

    Without a width, that of the terminal or of ``$COLUMNS`` is used.
    """
    from rich.console import Console

    file = StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(line(part) if isinstance(part, str) else part)
    # The console may have broken a cell where a command of GitHub's runner begins.
    return "\n".join(escape.disobeyed(each.rstrip()) for each in file.getvalue().split("\n")[:-1]) + "\n"


def show(render: Callable[[int | None, bool], str]) -> None:
    """Prints ``render(width, colour)``; for a file or pipe, the width is None and there is no colour."""
    if sys.stdout.isatty():
        sys.stdout.write(render(shutil.get_terminal_size().columns, True))
    else:
        sys.stdout.write(render(None, False))


def show_parts(parts: Iterable[Text | Table | str]) -> None:
    """Prints the parts one below the other."""
    listed = list(parts)
    show(lambda width, colour: written(listed, width, colour))


def print_json(value: object) -> None:
    """Prints one line of JSON."""
    print(escape.json_text(json.dumps(value, allow_nan=False)), flush=True)


def say(message: object, error: bool = False) -> None:
    """Prints a message of one or several lines, to standard error if it is one about an error."""
    print(escape.terminal_lines(str(message)), file=sys.stderr if error else sys.stdout, flush=True)
