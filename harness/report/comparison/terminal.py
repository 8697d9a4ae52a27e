"""A comparison on a terminal: a table, reasons for everything but plain unchanged findings, and the environment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.analysis.regression.findings import Finding, Regression
from harness.report.comparison import words
from harness.report.terminal import Rows, line, written
from harness.report.terminal import show as show_rendered

if TYPE_CHECKING:
    from rich.text import Text

STYLES = {
    "regressed": "bold red",
    "improved": "green",
    "unchanged": "",
    "inconclusive": "yellow",
    "incomparable": "yellow",
}
OUTCOMES = {"regressed": "bold red", "passed": "bold green", "undecided": "bold yellow"}


def terminal(found: Regression, width: int | None = None, colour: bool = False, whole: bool = False) -> str:
    """Plain text, with ANSI colours on request; ``whole`` also lists what did not change.

    Text from records cannot add markup or move the cursor.
    """
    return written(_parts(found, whole), width or 120, colour)


def show(found: Regression, whole: bool = False) -> None:
    """Prints the comparison on the terminal."""
    show_rendered(lambda width, colour: terminal(found, width, colour, whole))


def _parts(found: Regression, whole: bool) -> Iterator[Text | Rows | str]:
    yield line(words.verdict_line(found), OUTCOMES[found.outcome])
    for name, one in (("BASE", found.base), ("HEAD", found.head)):
        yield f"{name}  {words.side(one)}"
    yield f"gates {words.gates(found)}"
    listed = [each for each in words.worst_first(found) if whole or not words.plain(each)]
    if listed:
        yield _table(listed)
    yield from _below(found, listed)


def _table(listed: Sequence[Finding]) -> Rows:
    table = Rows((head, "left") for head in ("verdict", "variant", "metric", "BASE → HEAD", "change", "threshold"))
    for each in listed:
        verdict = each.verdict if each.gated else f"({each.verdict})"
        cells = [words.variant(each), words.subject(each), words.figures(each), words.change(each), words.limit(each)]
        table.add((verdict, STYLES[each.verdict]), *cells)
    return table


def _below(found: Regression, listed: Sequence[Finding]) -> Iterator[str]:
    explained = [each for each in listed if each.verdict != "unchanged" and words.why(each)]
    if explained:
        yield ""
        yield "Why:"
        for each in explained:
            yield f"  {each.verdict}: {words.variant(each)}, {words.subject(each)}: {words.why(each)}"
    for heading, lines in (
        ("Environment:", [words.environment(entry) for entry in found.environment]),
        ("Notes:", list(words.notes(found))),
    ):
        if lines:
            yield ""
            yield heading
            yield from (f"  {entry}" for entry in lines)
    rest = [f"total: {words.counts(found)}"]
    rest += [f"{len(found.findings) - len(listed)} not listed: see --all"] if len(listed) < len(found.findings) else []
    rest += ["in brackets: not a gate"] if any(not each.gated for each in listed) else []
    yield ""
    yield "; ".join(rest)
