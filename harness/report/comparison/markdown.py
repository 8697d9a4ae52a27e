"""A comparison as a pull request comment: the verdict, what got worse, the rest folded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from harness.analysis.regression.findings import Finding, Regression
from harness.report.comparison import words
from harness.report.escape import markdown as escape
from harness.report.renderers.markdown import table_line

MARKS = {"regressed": "❌", "undecided": "⚠️", "passed": "✅"}
HEAD = ("Verdict", "Variant", "Metric", "BASE → HEAD", "Change", "Threshold", "Why")


def markdown(found: Regression) -> str:
    """Text from records is escaped and cannot leave its cell."""
    parts = [f"## {MARKS[found.outcome]} qharness: {escape(words.verdict_line(found))}"]
    parts.append(f"BASE {escape(words.side(found.base))}  \nHEAD {escape(words.side(found.head))}")
    listed = words.worst_first(found)
    failed = [each for each in listed if each.gated and each.verdict == "regressed"]
    undecided = [each for each in listed if each.gated and each.verdict in ("inconclusive", "incomparable")]
    rest = [each for each in listed if each not in failed and each not in undecided]
    for heading, members in (("Regressions", failed), ("Gates that could not be evaluated", undecided)):
        if members:
            parts += [f"### {heading}", _table(members)]
    if rest:
        parts.append(
            _folded(f"The rest: {len(rest)} of {len(listed)} findings (total: {words.counts(found)})", _table(rest))
        )
    if found.environment:
        entries = _list(map(words.environment, found.environment))
        parts.append(_folded(f"Environment: {len(found.environment)} differences", entries))
    notes = list(words.notes(found))
    if notes:
        parts.append(_list(notes))
    parts.append(f"Gates: {escape(words.gates(found))}. A verdict in brackets does not count as a gate.")
    return "\n\n".join(parts) + "\n"


def _table(findings: Sequence[Finding]) -> str:
    return "\n".join([table_line(HEAD), table_line(["---"] * len(HEAD)), *map(table_line, map(_cells, findings))])


def _cells(finding: Finding) -> Iterator[str]:
    yield finding.verdict if finding.gated else f"({finding.verdict})"
    yield escape(finding.variant)
    yield escape(words.subject(finding))
    yield escape(words.figures(finding))
    yield escape(words.change(finding))
    yield escape(words.limit(finding))
    yield escape(words.why(finding))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n\n{content}\n\n</details>"
