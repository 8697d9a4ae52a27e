"""Tables and lines for a terminal: at its width, and in colour if it supports it.

All text passes through ``harness.report.escape``: neither markup of rich nor a terminal's control characters in it have
an effect.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from harness.report import escape

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.segment import Segment
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text


def line(words: str, style: str = "") -> Text:
    """One line, or one cell."""
    from rich.text import Text

    return Text(escape.terminal(words), style=style)


def add_row(table: Table, *cells: str | Text) -> None:
    """Adds a row of cells; those that have no style of their own are given as strings."""
    table.add_row(*(line(cell) if isinstance(cell, str) else cell for cell in cells))


Cell = str | tuple[str, str]
"""A text, or a text and its style."""
Head = tuple[str, Literal["left", "right"]]
"""The heading of a column, and where its cells are aligned."""


class Rows:
    """A table without a box or padded edges, printed exactly as rich prints it, and many thousands of rows quickly.

    Of the cells of a column, those that are equal are measured and wrapped once, and rich renders only those that have
    a style or may have wide characters.
    """

    def __init__(self, heads: Iterable[Head]) -> None:
        self._heads = list(heads)
        self._rows: list[tuple[Cell, ...]] = []

    def add(self, *cells: Cell) -> None:
        self._rows.append(cells)

    def text(self, console: Console) -> str:
        """All lines as the console would print them."""
        cells = list(zip(*self._rows, strict=True)) or [()] * len(self._heads)
        shown = [{cell: _shown(cell) for cell in dict.fromkeys(column)} for column in cells]
        table = _table(self._heads, [column.values() for column in shown])
        widths = table._calculate_column_widths(console, console.options)  # rich has no public way to get them
        columns = [
            _Column(table, number, width, console, texts)
            for number, (texts, width) in enumerate(zip(shown, widths, strict=True))
        ]
        heads = [column.head for column in columns]
        tallest = max(map(len, heads))
        above = [(tallest - len(head)) * [column.above] + head for column, head in zip(columns, heads, strict=True)]
        lines = ["".join(line) for line in zip(*above, strict=True)]
        found = [map(column.lines.__getitem__, own) for column, own in zip(columns, cells, strict=True)]
        blanks = [" " * width for width in widths]
        for row in zip(*found, strict=True):
            heights = set(map(len, row))
            tallest = max(1, *heights)
            if heights != {tallest}:
                row = tuple(own + [blank] * (tallest - len(own)) for own, blank in zip(row, blanks, strict=True))
            lines.extend(map("".join, zip(*row, strict=True)))
        return "\n".join(lines) + "\n"


class _Column:
    """The lines of the cells of a column, of which ``shown`` has the texts, and of its heading."""

    def __init__(self, table: Table, number: int, width: int, console: Console, shown: Mapping[Cell, str]) -> None:
        from rich.segment import Segment

        _, right, _, left = table.padding
        self._around = 0 if number == 0 else left, 0 if number == len(table.columns) - 1 else right
        self._console, self._column, self._width = console, table.columns[number], width
        self._head_style = console.get_style(table.header_style)
        self.above = self._printed([Segment(" " * width, self._head_style)])
        self.head = self._wrapped(self._column.header, self._head_style)
        self.lines = {cell: self._lines(cell, text) for cell, text in shown.items()}

    def _lines(self, cell: Cell, text: str) -> list[str]:
        from rich._wrap import divide_line  # rich has no public way to break a plain text

        before, after = self._around
        inner = self._width - before - after
        style = "" if isinstance(cell, str) or self._console.color_system is None else cell[1]
        if style or inner < 1 or not _is_narrow(text) or text.strip() != text:
            return self._wrapped(line(text, style), None)
        parts = [text]
        if len(text) > inner:
            breaks = divide_line(text, inner)
            parts = [text[begin:end].rstrip() for begin, end in pairwise((0, *breaks, len(text)))]
        aligned = (part.rjust(inner) if self._column.justify == "right" else part.ljust(inner) for part in parts)
        return [f"{' ' * before}{part}{' ' * after}" for part in aligned]

    def _wrapped(self, content: RenderableType, style: Style | None) -> list[str]:
        from rich.padding import Padding
        from rich.style import Style as NoStyle

        column, (before, after) = self._column, self._around
        options = self._console.options.update(
            width=self._width, justify=column.justify, overflow=column.overflow, no_wrap=False, height=None
        )
        padded = Padding(content, (0, after, 0, before))
        return [
            self._printed(segments)
            for segments in self._console.render_lines(padded, options, style=style or NoStyle.null())
        ]

    def _printed(self, segments: Iterable[Segment]) -> str:
        colours = self._console._color_system
        return "".join(
            each.style.render(each.text, color_system=colours) if each.style else each.text for each in segments
        )


def _shown(cell: Cell) -> str:
    return escape.terminal(cell if isinstance(cell, str) else cell[0])


_NARROW = frozenset(map(chr, range(ord(" "), ord("~") + 1))) | frozenset("×±·…→▁▂▃▄▅▆▇█")
_is_narrow = re.compile(f"[{re.escape(''.join(sorted(_NARROW)))}]*").fullmatch
"""Whether a text has one column for each character, and no spaces but those that part words."""


def _table(heads: Sequence[Head], texts: Sequence[Iterable[str]]) -> Table:
    """A table with the cells that determine the widths of its columns, of which ``texts`` has all."""
    from rich.table import Column
    from rich.table import Table as RichTable

    columns = [
        Column(line(head), justify=justify, overflow="fold", _cells=[line(text) for text in _widest(column)])
        for (head, justify), column in zip(heads, texts, strict=True)
    ]
    return RichTable(*columns, box=None, header_style="bold", pad_edge=False)


def _widest(texts: Iterable[str]) -> list[str]:
    """The texts among which is the widest, and the one with the widest word."""
    narrow, others = list[str](), list[str]()
    for text in texts:
        (narrow if _is_narrow(text) else others).append(text)
    longest = [max(narrow, key=len), max(narrow, key=_longest_word)] if narrow else []
    return [*longest, *others]


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def written(parts: Iterable[Text | Table | Rows | str], width: int | None = None, colour: bool = False) -> str:
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
        if isinstance(part, Rows):
            file.write(part.text(console))
        else:
            console.print(line(part) if isinstance(part, str) else part)
    text = file.getvalue()
    lines = map(str.rstrip, text.split("\n")[:-1])
    if escape.may_command(text):  # the console may have broken a cell where a command of GitHub's runner begins
        lines = map(escape.disobeyed, lines)
    return "\n".join(lines) + "\n"


def show(render: Callable[[int | None, bool], str]) -> None:
    """Prints ``render(width, colour)``; for a file or pipe, the width is None and there is no colour."""
    if sys.stdout.isatty():
        sys.stdout.write(render(shutil.get_terminal_size().columns, True))
    else:
        sys.stdout.write(render(None, False))


def show_parts(parts: Iterable[Text | Table | Rows | str]) -> None:
    """Prints the parts one below the other."""
    listed = list(parts)
    show(lambda width, colour: written(listed, width, colour))


def print_json(value: object) -> None:
    """Prints one line of JSON."""
    print(escape.json_text(json.dumps(value, allow_nan=False)), flush=True)


def say(message: object, error: bool = False) -> None:
    """Prints a message of one or several lines, to standard error if it is one about an error."""
    print(escape.terminal_lines(str(message)), file=sys.stderr if error else sys.stdout, flush=True)
