"""The report as GitHub-flavoured Markdown: the tables, failures, machine, commands to reproduce it."""

from __future__ import annotations

from collections.abc import Iterable

from harness.figures.table import Table, VariantRow
from harness.report.answer import Answer
from harness.report.column import Column, cells, shown_columns
from harness.report.escape import markdown as escape
from harness.report.escape import markdown_code, markdown_html, markdown_log
from harness.report.page import Fault, Page, compared_with, noise_floor, table_labels, terms

GROUPED = ("Peak memory", "Cost of quantizing", "Energy", "Cost of tokens", "KV cache", "Fits the budget")
"""Groups whose column headings need the name of the group."""

MOST_DAMAGED = 30
"""The number of damaged records that are named; more are counted."""


def markdown(whole: Page) -> str:
    """The whole report. Text from records is escaped and cannot leave its cell."""
    parts = [f"# Quantization report: {escape(whole.title)}", *([escape(whole.redacted)] if whole.redacted else [])]
    sections = zip(whole.headings, whole.tables, whole.answers, strict=True)
    parts += [part for name, table, answer in sections for part in _table(name, table, answer)]
    if whole.damaged:
        parts += ["## Damaged records", "\n".join(_damaged(whole))]
    if whole.faults:
        parts += ["## Runs without figures", *map(_fault, whole.faults)]
    return "\n\n".join([*parts, *_origin(whole)]) + "\n"


def _table(name: str, table: Table, answer: Answer | None) -> Iterable[str]:
    columns = shown_columns(table)
    yield f"## {escape(name)}"
    if answer:
        yield _answer(answer)
    yield "  \n".join(_caption(table))
    head = [table_line(["Variant", *map(heading, columns)]), table_line(["---", *("---:" for _ in columns)])]
    columns_of_cells = [[escape(each.whole) for each in cells(table, column)] for column in columns]
    rows = zip(map(_name, table.rows), *columns_of_cells, strict=True)
    yield "\n".join([*head, *map(table_line, rows)])
    if table.notes:
        yield "\n".join(f"- {escape(note)}" for note in table.notes)


def _answer(answer: Answer) -> str:
    """The answer in one sentence, and what is uncertain about it."""
    lines = [f"**{escape(answer.question)}:** {escape(answer.finding)}."]
    return "\n".join([*lines, *(f"- Uncertain: {escape(doubt)}." for doubt in answer.uncertain)])


def _caption(table: Table) -> Iterable[str]:
    yield f"{escape(table.hardware)}; perplexity protocol: {escape(table.protocol)}."
    for label in table_labels(table):
        yield f"**⚠ {escape(label.sentence)}.**"
    floor = noise_floor(table)
    if floor:
        yield escape(floor)
    relative = compared_with(table)
    if relative:
        yield escape(relative)
    if table.grid:
        yield f"Speed at {escape(table.grid[0].label)}."
    used = terms(table)
    if used:
        yield escape(used)
    yield (
        "Brackets: 95% intervals; for energy, the range over processes. "
        "● no other variant is both smaller and closer to the baseline. GB is 10⁹ bytes, GiB is 2³⁰."
    )


def heading(column: Column) -> str:
    """A column's name and unit, understandable without its group; escaped, for a task or a plugin may name it."""
    words = f"{column.group}: {column.heading}" if column.group in GROUPED else column.heading
    return escape(f"{words} ({column.unit})" if column.unit else words)


def _name(row: VariantRow) -> str:
    words = [f"**{escape(row.label)}**"]
    if row.is_baseline:
        words.append("(baseline)")
    elif row.is_control:
        words.append("(control)")
    if row.front and not row.is_baseline:
        words.append("●")
    if row.status != "ok":
        words.append(f"({row.status.replace('_', ' ')}: {escape(row.reason or 'no reason recorded')})")
    return " ".join([*words, *(f"⚠ {escape(label.sentence)}" for label in row.labels)])


def table_line(cells: Iterable[str]) -> str:
    """One line of a Markdown table; the cells are escaped already."""
    return f"| {' | '.join(cells)} |"


def _fault(fault: Fault) -> str:
    words = f"{fault.title}: {fault.status.replace('_', ' ')}: {fault.reason}"
    if not fault.log_tail:
        return f"- {escape(words)}"
    return (
        f"<details><summary>{markdown_html(words)}</summary>\n\n<pre>{markdown_log(fault.log_tail)}</pre>\n\n</details>"
    )


def _damaged(whole: Page) -> Iterable[str]:
    yield from (f"- {escape(each.remark)}" for each in whole.damaged[:MOST_DAMAGED])
    if len(whole.damaged) > MOST_DAMAGED:
        yield f"- and {len(whole.damaged) - MOST_DAMAGED:,} more"


def _origin(whole: Page) -> Iterable[str]:
    yield "## Reproduce these results"
    yield "\n".join(
        [
            "```sh",
            *map(markdown_code, whole.commands),
            "```",
        ]
    )
    if whole.asked:
        yield "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in whole.asked)
    for title, entries in (("Machine", whole.hardware), ("Versions", whole.software)):
        if entries:
            yield f"{title}: " + ", ".join(f"{escape(name)} {escape(value)}" for name, value in entries) + "."
    sessions = ", ".join(map(escape, whole.sessions))
    yield f"Measured {escape(whole.measured)} in sessions {sessions}." if sessions else "No runs."
