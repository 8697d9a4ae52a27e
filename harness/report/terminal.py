"""Tables and lines for a terminal: at its width, and in colour if it supports it.

All text passes through ``harness.report.escape``: neither markup of rich nor a terminal's control characters in it have
an effect.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from typing import TYPE_CHECKING

from harness.report import escape

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.table import Table
    from rich.text import Text


def line(words: str, style: str = "") -> Text:
    """One line, or one cell."""
    from rich.text import Text

    return Text(escape.terminal(words), style=style)


def add_row(table: Table, *cells: str | Text) -> None:
    """Adds a row of cells; those that have no style of their own are given as strings."""
    table.add_row(*(line(cell) if isinstance(cell, str) else cell for cell in cells))


class Rows:
    """Prints a table without a box or padded edges, of cells that ``line`` made, exactly as rich does.

    Cells of a column that are equal are measured and wrapped once: many thousands of rows repeat most of their cells.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import Segment

        keys = [[_cell_key(cell) for cell in column.cells] for column in self._table.columns]
        unlike = [
            dict(zip(own, column.cells, strict=True)) for own, column in zip(keys, self._table.columns, strict=True)
        ]
        widths = _widths(self._table, [list(cells.values()) for cells in unlike], console, options)
        columns = [
            _wrapped(self._table, number, cells, width, console, options)
            for number, (cells, width) in enumerate(zip(unlike, widths, strict=True))
        ]
        heads = [lines[_HEAD] for lines in columns]
        above = [[Segment(" " * width, console.get_style(self._table.header_style))] for width in widths]
        tallest = max(map(len, heads))
        yield from _side_by_side(
            [(tallest - len(lines)) * [blank] + lines for lines, blank in zip(heads, above, strict=True)], above
        )
        blanks = [[Segment(" " * width)] for width in widths]
        for row in zip(*keys, strict=True):
            yield from _side_by_side([lines[key] for lines, key in zip(columns, row, strict=True)], blanks)


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
        console.print(line(part) if isinstance(part, str) else part)
    # The console may have broken a cell where a command of GitHub's runner begins.
    return "\n".join(escape.disobeyed(each.rstrip()) for each in file.getvalue().split("\n")[:-1]) + "\n"


_Key = tuple[str, str]
_Lines = list[list["Segment"]]
_HEAD: _Key = ("", "head")
"""The place of a column's heading among its cells: none has this style."""


def _cell_key(cell: object) -> _Key:
    from rich.text import Text

    assert isinstance(cell, Text)
    return cell.plain, str(cell.style)


def _widths(table: Table, unlike: list[list[RenderableType]], console: Console, options: ConsoleOptions) -> list[int]:
    """The widths of the columns, which depend on their different cells alone: rich has no public way to get them."""
    from rich.table import Column, Table

    headed = (
        Column(column.header, justify=column.justify, overflow=column.overflow, _cells=cells)
        for column, cells in zip(table.columns, unlike, strict=True)
    )
    slim = Table(*headed, box=None, header_style=table.header_style, pad_edge=False)
    return slim._calculate_column_widths(console, options)


def _wrapped(
    table: Table, number: int, cells: dict[_Key, RenderableType], width: int, console: Console, options: ConsoleOptions
) -> dict[_Key, _Lines]:
    """The lines of each cell of a column, and of its heading."""
    from rich.padding import Padding
    from rich.style import Style

    column = table.columns[number]
    _, right, _, left = table.padding
    around = (0, 0 if number == len(table.columns) - 1 else right, 0, 0 if number == 0 else left)
    of_cell = options.update(width=width, justify=column.justify, overflow=column.overflow, no_wrap=False, height=None)
    styles = {_HEAD: console.get_style(table.header_style)}
    return {
        key: console.render_lines(Padding(cell, around), of_cell, style=styles.get(key, Style.null()))
        for key, cell in {**cells, _HEAD: column.header}.items()
    }


def _side_by_side(cells: list[_Lines], blanks: _Lines) -> Iterator[Segment]:
    """The lines of a row; neighbours without a style are joined, because each segment costs time."""
    from rich.segment import Segment

    for line_number in range(max(1, *map(len, cells))):
        plain = ""
        for lines, blank in zip(cells, blanks, strict=True):
            for segment in lines[line_number] if line_number < len(lines) else blank:
                if not segment.style:
                    plain += segment.text
                    continue
                if plain:
                    yield Segment(plain)
                    plain = ""
                yield segment
        yield Segment(plain + "\n")


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
