"""Tables on a terminal whose equal cells are wrapped once look as rich prints them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.table import Table

from harness.report.terminal import _NARROW, Rows, add_row, line, written

TEXTS = (
    "SmolLM2",
    "日本語",
    "a",
    "bb ccc",
    "longer than a column " * 2,
    "",
    "▁▂▃",
    "1→2",
    " a ",
    "x\u00a0y",
    "##[group]",
)
CELLS = st.lists(st.sampled_from(TEXTS), max_size=4)
STYLES = st.sampled_from(("", "green", "bold red"))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(CELLS, CELLS, STYLES), min_size=1, max_size=8),
    st.sampled_from((10, 30, 80, 200)),
    st.booleans(),
)
def test_rows_are_printed_as_rich_prints_the_table(
    rows: list[tuple[list[str], list[str], str]], width: int, colour: bool
) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    quick = Rows((("variant of a model", "left"), ("sessions", "right"), ("oldest → newest", "left")))
    table.add_column("variant of a model", overflow="fold")
    table.add_column("sessions", overflow="fold", justify="right")
    table.add_column("oldest → newest", overflow="fold")
    for first, last, style in rows:
        add_row(table, " ".join(first), str(len(last)), line(" ".join(last), style))
        quick.add(" ".join(first), str(len(last)), (" ".join(last), style))
    assert written([quick], width, colour) == written([table], width, colour)


def test_a_terminal_that_is_too_narrow_for_a_column_gets_a_line_for_each_row() -> None:
    quick = Rows((("variant", "left"), ("sessions", "right"), ("change", "left")))
    for name in "abc":
        quick.add(name, "1", ("better", "green"))
    for width in range(1, 12):
        assert written([quick], width, colour=False).count("\n") >= 3


def test_characters_that_rows_take_for_narrow_are() -> None:
    assert {cell_len(character) for character in _NARROW} == {1}
